"""A measurement leaves its records and nothing else: same random numbers, same modes, also when it is stopped."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.config.run_folder import RunFolder
from trainer.data.collate import Batch
from trainer.distributed import World
from trainer.evaluation.examples import EvaluationData, EvaluationExample
from trainer.evaluation.measure import Measurement, measure, untouched
from trainer.evaluation.records import read_records
from trainer.evaluation.suite import EvaluationTask
from trainer.evaluation.suite_schema import SuiteTask
from trainer.seeding import random_state, restore_random_state

CPU = torch.device("cpu")
ONE_RANK = World(0, 1, 0, CPU)
V = 4
ROUNDING = 1e-6


@dataclass(frozen=True)
class Padding:
    """All that scoring asks of an encoder where nothing is generated."""

    pad_token_id: int = 0


@dataclass(frozen=True)
class OtherRank:
    """A rank that is not the main one and happens to hold every batch."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    is_main: bool = False

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]


class NoisyEngine:
    """Flat odds over V words; draws random numbers as a careless model would, and notes the modes it was in."""

    cache_obstacle = "a stand-in takes each candidate as a text of its own"

    def __init__(self, *, world: Any = ONE_RANK) -> None:
        self.world = world
        self.model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), nn.LayerNorm(2))
        self.seen: set[tuple[bool, ...]] = set()
        self.num_rows: list[int] = []

    def forward(self, batch: Batch) -> Tensor:
        self.seen.add(tuple(modes(self.model)))
        draws()
        self.num_rows.append(len(batch.input_ids_BT))
        return torch.zeros(*batch.input_ids_BT.shape, V)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def draws() -> list[Any]:
    return [random.random(), np.random.rand(2).tolist(), torch.rand(2).tolist()]


@pytest.fixture(autouse=True)
def _random_state_of_other_tests() -> Iterator[None]:
    state = random_state()
    yield
    restore_random_state(state)


def text_task(name: str) -> EvaluationTask:
    spec = SuiteTask(kind="text", data="d", prompt="p", response="r")
    return EvaluationTask(name=name, capability=name, examples=name, group="base", spec=spec)


def text_data(*lengths: int) -> EvaluationData:
    """Texts of so many tokens after one token of prompt."""
    examples = [
        EvaluationExample(
            example_id=f"id{number}",
            prompt="p",
            target="t",
            candidates=("t",),
            prompt_ids=(1,),
            candidate_ids=((2,) * length,),
        )
        for number, length in enumerate(lengths)
    ]
    return EvaluationData(examples, 0)


def choice_task_and_data() -> tuple[EvaluationTask, EvaluationData]:
    """Four questions; odds are flat, so that the first candidate is picked: right in one of four."""
    spec = SuiteTask(kind="choice", data="d", prompt="p", response="r", choices_column="c")
    examples = [
        EvaluationExample(
            example_id=f"id{number}",
            prompt="p",
            target=target,
            candidates=("a", "b"),
            prompt_ids=(1,),
            candidate_ids=((2,), (3,)),
        )
        for number, target in enumerate("abbb")
    ]
    return EvaluationTask(name="quiz", capability="quiz", examples="quiz", group="base", spec=spec), EvaluationData(
        examples, 0
    )


def measured(
    engine: Any,
    folder: Path,
    tasks: list[EvaluationTask],
    data: list[EvaluationData],
    *,
    check_stop: Any = lambda: None,
) -> list[tuple[str, float]]:
    """Measure at step 30; what `on_task` was told."""
    told: list[tuple[str, float]] = []
    padding: Any = Padding()
    measure(
        engine,
        Measurement(tasks, data, padding, examples_per_batch=2),
        folder=RunFolder(folder),
        step=30,
        check_stop=check_stop,
        on_task=lambda name, value: told.append((name, value)),
    )
    return told


def test_inside_every_module_is_in_evaluation_mode() -> None:
    engine: Any = NoisyEngine()
    engine.model.train()
    with untouched(engine):
        assert not any(modes(engine.model))


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2), (0, 1, 2, 3, 4, 5)])
def test_afterwards_each_module_is_in_its_own_mode_again(frozen: tuple[int, ...]) -> None:
    # A frozen part may have been put into evaluation mode by hand: a plain `model.train()` would wake it up.
    engine: Any = NoisyEngine()
    for number, module in enumerate(engine.model.modules()):
        module.training = number not in frozen
    before = modes(engine.model)
    assert len(before) == 6
    with untouched(engine):
        pass
    assert modes(engine.model) == before


def test_afterwards_the_next_random_numbers_are_those_that_were_due() -> None:
    engine: Any = NoisyEngine()
    state = random_state()
    wanted = draws()
    restore_random_state(state)
    with untouched(engine):
        draws()
    assert draws() == wanted


def test_an_exception_passes_through_and_leaves_no_trace_either() -> None:
    engine: Any = NoisyEngine()
    engine.model[1].eval()
    before = modes(engine.model)
    state = random_state()
    wanted = draws()
    restore_random_state(state)

    def interrupted() -> None:
        with untouched(engine):
            draws()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (modes(engine.model), draws()) == (before, wanted)


def test_a_measurement_writes_the_records_of_each_task_and_tells_its_number(tmp_path: Path) -> None:
    # prose: ln 4 at each of 1 + 2 + 5 tokens: 8 ln 4 / 8 tokens.  quiz: one of four.
    quiz, quiz_data = choice_task_and_data()
    told = measured(NoisyEngine(), tmp_path, [text_task("prose"), quiz], [text_data(1, 2, 5), quiz_data])
    assert [name for name, _ in told] == ["prose", "quiz"]
    assert [value for _, value in told] == pytest.approx([math.log(4), 0.25], abs=ROUNDING)
    folder = RunFolder(tmp_path)
    prose = read_records(folder.records(30, "prose"))
    assert [(record.id, record.weight) for record in prose] == [("id0", 1.0), ("id1", 2.0), ("id2", 5.0)]
    assert [record.value for record in read_records(folder.records(30, "quiz"))] == [1.0, 0.0, 0.0, 0.0]


def test_the_number_of_a_loss_is_per_token_not_per_text(tmp_path: Path) -> None:
    # Only the token after the prompt is in doubt: ln 4 in a text of 1 token, ln 4 in one of 5: 2 ln 4 / 6 tokens,
    # where a mean over texts would say (ln 4 + ln 4 / 5) / 2.
    class FirstTokenCosts(NoisyEngine):
        def forward(self, batch: Batch) -> Tensor:
            logits_BTV = torch.zeros(*batch.input_ids_BT.shape, V)
            logits_BTV[:, 1:, 2] = 99.0
            return logits_BTV

    told = measured(FirstTokenCosts(), tmp_path, [text_task("prose")], [text_data(1, 5)])
    assert told == [("prose", pytest.approx(math.log(4) / 3, abs=ROUNDING))]


def test_a_measurement_leaves_no_trace_on_training(tmp_path: Path) -> None:
    engine = NoisyEngine()
    engine.model.train()
    state = random_state()
    wanted = draws()
    restore_random_state(state)
    measured(engine, tmp_path, [text_task("prose")], [text_data(1, 2, 5)])
    assert engine.seen == {(False,) * 6}
    assert (modes(engine.model), draws()) == ([True] * 6, wanted)


def test_a_measurement_that_is_stopped_leaves_no_trace_and_no_half_measurement(tmp_path: Path) -> None:
    # prose has two batches of 2, quiz has 8 sequences in four: the fourth question comes within quiz.
    asked: list[int] = []

    def stop_at_fourth() -> None:
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt

    engine = NoisyEngine()
    engine.model.train()
    quiz, quiz_data = choice_task_and_data()
    state = random_state()
    wanted = draws()
    restore_random_state(state)
    with pytest.raises(KeyboardInterrupt):
        measured(
            engine, tmp_path, [text_task("prose"), quiz], [text_data(1, 2, 5), quiz_data], check_stop=stop_at_fourth
        )
    assert (modes(engine.model), draws()) == ([True] * 6, wanted)
    assert list(tmp_path.iterdir()) == []


def test_only_the_main_rank_writes_but_every_rank_is_told(tmp_path: Path) -> None:
    told = measured(NoisyEngine(world=OtherRank()), tmp_path, [text_task("prose")], [text_data(1, 2)])
    assert [name for name, _ in told] == ["prose"]
    assert list(tmp_path.iterdir()) == []
