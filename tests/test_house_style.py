"""Sizes and names of files, no probing for attributes, and a README whose file tree is the disk's.

Each rule is a function from text or paths to faults, so that it is also shown to find a fault.
"""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST_FILE_LINES = 300
LONGEST_SCHEMA_LINES = 400
LONGEST_FUNCTION_LINES = 60
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
PROBES = {"getattr", "hasattr"}
SOURCE_PATHS = [path for top in ("launch", "trainer") for path in sorted((REPOSITORY / top).rglob("*.py"))]
ALL_PATHS = [*SOURCE_PATHS, *sorted((REPOSITORY / "tests").rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def texts(paths: Iterable[Path]) -> dict[str, str]:
    return {relative(path): path.read_text(encoding="utf-8") for path in paths}


def length_fault(name: str, text: str) -> str | None:
    limit = LONGEST_SCHEMA_LINES if name == "trainer/config/schema.py" else LONGEST_FILE_LINES
    lines = len(text.splitlines())
    return f"{name}: {lines} lines, at most {limit}" if lines > limit else None


def long_functions(name: str, text: str) -> list[str]:
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(function.name, (function.end_lineno or 0) - function.lineno + 1) for function in functions]
    return [f"{name}: {function}: {lines} lines" for function, lines in lengths if lines > LONGEST_FUNCTION_LINES]


def says_nothing(name: str) -> bool:
    return bool(set(Path(name).with_suffix("").parts) & EMPTY_NAMES)


def probes(name: str, text: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name) and node.id in PROBES]
    return [f"{name}:{call.lineno}: {call.id}" for call in calls]


def test_files_are_short() -> None:
    assert [fault for name, text in texts(ALL_PATHS).items() if (fault := length_fault(name, text))] == []
    assert length_fault("trainer/loop.py", "\n" * 301) == "trainer/loop.py: 301 lines, at most 300"
    assert length_fault("trainer/config/schema.py", "\n" * 400) is None


def test_functions_are_short() -> None:
    assert [fault for name, text in texts(ALL_PATHS).items() for fault in long_functions(name, text)] == []
    longest = "def f():\n" + "    x = 1\n" * 59
    assert long_functions("a.py", longest) == []
    assert long_functions("a.py", longest + "    x = 1\n") == ["a.py: f: 61 lines"]


def test_files_are_named_by_their_idea() -> None:
    assert [name for name in map(relative, ALL_PATHS) if says_nothing(name)] == []
    assert [
        name for name in ("trainer/utils.py", "launch/common/x.py", "trainer/database.py") if says_nothing(name)
    ] == [
        "trainer/utils.py",
        "launch/common/x.py",
    ]


def test_source_is_ascii() -> None:
    assert [name for name, text in texts(ALL_PATHS).items() if not text.isascii()] == []


def test_attributes_are_not_probed_for() -> None:
    assert [fault for name, text in texts(SOURCE_PATHS).items() for fault in probes(name, text)] == []
    assert probes("a.py", "x = 1\ny = getattr(x, 'real', None)\nz = map(hasattr, [])\n") == [
        "a.py:2: getattr",
        "a.py:3: hasattr",
    ]


def read_tree(readme: str) -> list[tuple[str, str]]:
    """(path, clause) of each line of the fenced block under the heading `## File tree`."""
    block = re.search(r"^## File tree\n.*?^```\w*\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    lines = block[1].splitlines() if block else []
    cells = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if line.strip()]
    return [(cell[0], cell[1] if len(cell) > 1 else "") for cell in cells]


def is_visible_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and "__pycache__" not in path.parts


def has_code(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return not all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def paths_to_tell(root: Path) -> set[str]:
    """What the tree must name: code, configurations, job scripts, top-level files, and the folders of tests."""
    code = [path for top in ("launch", "trainer") for path in (root / top).rglob("*.py")]
    found = [path for path in code if path.name != "__init__.py" or has_code(path)]
    found += [path for top in ("configs", "slurm") for path in (root / top).rglob("*") if is_visible_file(path)]
    found += [path for path in root.iterdir() if is_visible_file(path)]
    tests = {path.parent for path in (root / "tests").rglob("*.py")} - {root / "tests"}
    return {path.relative_to(root).as_posix() for path in found} | {
        f"{path.relative_to(root).as_posix()}/" for path in tests
    }


def tree_faults(readme: str, root: Path) -> list[str]:
    entries = read_tree(readme)
    named = [path for path, _ in entries]
    return [
        *(f"{path}: on disk, not in the tree" for path in sorted(paths_to_tell(root) - set(named))),
        *(f"{path}: in the tree, not on disk" for path in named if not (root / path).exists()),
        *(f"{path}: named twice" for path in sorted({path for path in named if named.count(path) > 1})),
        *(f"{path}: no clause says what it is" for path, clause in entries if not clause),
    ]


def test_the_file_tree_of_the_readme_is_the_disks() -> None:
    readme = REPOSITORY / "README.md"
    assert readme.exists(), "README.md is missing: pyproject.toml and the file tree need it"
    assert tree_faults(readme.read_text(encoding="utf-8"), REPOSITORY) == []


@pytest.fixture
def small_project(tmp_path: Path) -> Path:
    for name in ("launch/__init__.py", "launch/plan.py", "configs/demo.yaml", "tests/unit/test_plan.py", "Makefile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('"""A docstring."""\n')
    return tmp_path


def readme_with(*lines: str) -> str:
    return "\n".join(["# Title", "", "## File tree", "", "Text.", "", "```text", *lines, "```", "", "## Next", ""])


COMPLETE = (
    "Makefile  make demo",
    "configs/demo.yaml   a run",
    "launch/plan.py  decides",
    "tests/unit/  one module each",
)


def test_a_complete_tree_has_no_fault(small_project: Path) -> None:
    assert tree_faults(readme_with(*COMPLETE), small_project) == []
    assert tree_faults(readme_with(*COMPLETE, "launch/__init__.py  may be told as well"), small_project) == []


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (COMPLETE[1:], "Makefile: on disk, not in the tree"),
        ((*COMPLETE[:3],), "tests/unit/: on disk, not in the tree"),
        ((*COMPLETE, "launch/gone.py  was here"), "launch/gone.py: in the tree, not on disk"),
        ((*COMPLETE, COMPLETE[2]), "launch/plan.py: named twice"),
        (("Makefile", *COMPLETE[1:]), "Makefile: no clause says what it is"),
    ],
)
def test_a_tree_that_differs_from_the_disk_is_told(small_project: Path, lines: tuple[str, ...], fault: str) -> None:
    assert tree_faults(readme_with(*lines), small_project) == [fault]


def test_a_readme_without_a_tree_names_nothing(small_project: Path) -> None:
    assert len(tree_faults("# Title\n\n```\nmake demo\n```\n", small_project)) == len(COMPLETE)
