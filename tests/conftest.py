"""What all tests share: golden files that only `--accept` rewrites, and the tiny recipe."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.recipe import Recipe


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="rewrite golden files with what the code gives now")


@dataclass(frozen=True)
class Golden:
    """Texts that the code gave when a person last looked at them."""

    folder: Path
    accept: bool

    def check(self, name: str, found: str) -> None:
        """Compare with the file `name`, or rewrite it under --accept."""
        path = self.folder / name
        if self.accept:
            path.write_text(found, encoding="utf-8")
            return
        wanted = path.read_text(encoding="utf-8") if path.exists() else ""
        if found == wanted:
            return
        diff = difflib.unified_diff(
            wanted.splitlines(keepends=True), found.splitlines(keepends=True), f"golden/{name}", "what the code gives"
        )
        pytest.fail(
            f"{''.join(diff)}\nIf this change is meant: pytest tests/golden --accept, read `git diff`, "
            "and say it in CHANGELOG.md.",
            pytrace=False,
        )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(Path(__file__).parent / "golden", accept=request.config.getoption("--accept"))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path)
