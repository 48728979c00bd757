"""The fleet of runs that the classes compare, and the table of their deviations at the end (`make equivalence`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.equivalence.classes import cases_on_one_process, cases_on_two_processes
from tests.fleet import run_fleet, tiny_recipe
from tests.stand_ins import stand_in


@dataclass(frozen=True)
class Row:
    """One class in the table."""

    name: str
    num_members: int
    deviation: float
    worst: str
    tolerance: float
    caught: dict[str, float]


ROWS = pytest.StashKey[list[Row]]()
Note = Callable[[Row], None]


def computes_in_fp16() -> bool:
    """Whether this processor does; DeepSpeed asks the same."""
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results of all cases by name: one launch on one process, one on two."""
    root = tmp_path_factory.mktemp("fleet")
    encoder = tiny_recipe(root, stand_in(root / "bert", "bert"))
    results: dict[str, dict[str, Any]] = {}
    for processes, cases in ((1, cases_on_one_process(encoder)), (2, cases_on_two_processes(encoder))):
        folder = root / f"on_{processes}"
        folder.mkdir()
        wanted = {name: case for name, case in cases.items() if case.bypass is None or computes_in_fp16()}
        results |= run_fleet(wanted, folder, processes=processes)
    return results


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Puts a row into the table."""
    return request.config.stash.setdefault(ROWS, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table, with every negative and how far off it was."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("equivalence: largest relative deviation of a loss, gradient norm or logit")
    for row in rows:
        verdict = "agree" if row.deviation <= row.tolerance else "DIFFER"
        terminalreporter.write_line(
            f"{row.name:<42} {row.num_members:>2} run(s) {verdict} within {row.tolerance:.0e}: "
            f"{row.deviation:.1e} ({row.worst})"
        )
        for fault, deviation in row.caught.items():
            terminalreporter.write_line(f"{'':<42} caught: {fault}: {deviation:.1e}")
