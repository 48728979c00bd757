"""Who may import whom, one door for each library, and no torch on a login node.

Each rule is a function from source text to faults, so that it is also shown to find a fault.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.floors import DOORS, FLOORS

REPOSITORY = Path(__file__).resolve().parent.parent

GROUND = FLOORS[0]
HEIGHT = {module: (floor, place) for floor, row in enumerate(FLOORS) for place, module in enumerate(row)}

HEAVY = ("torch", "transformers", "deepspeed", "peft", "accelerate", "datasets")


def read_sources() -> dict[str, str]:
    """The text of each module but the package files, which hold a docstring at most."""
    paths = [path for top in ("launch", "trainer") for path in sorted((REPOSITORY / top).rglob("*.py"))]
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in paths
        if path.name != "__init__.py"
    }


SOURCES = read_sources()


def is_only_a_docstring(source: str) -> bool:
    return all(isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in ast.parse(source).body)


def imported_names(node: ast.AST) -> list[str]:
    """Dotted names that an import statement reaches for; a relative import keeps its dots."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def is_internal(name: str) -> bool:
    return name.startswith(".") or name.split(".")[0] in ("launch", "trainer")


def module_of(name: str, modules: Mapping[str, object]) -> str:
    """The module that an internal name lives in; the name itself where there is none."""
    parts = name.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in modules), name)


def internal_imports(source: str, modules: Mapping[str, object]) -> list[str]:
    names = [name for node in ast.walk(ast.parse(source)) for name in imported_names(node) if is_internal(name)]
    return [module_of(name, modules) for name in names]


def table_faults(sources: Mapping[str, str]) -> list[str]:
    return [f"{module}: on no floor" for module in sources if module not in HEIGHT] + [
        f"{module}: on a floor, but not on disk" for module in HEIGHT if module not in sources
    ]


def floor_faults(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{module} imports {other}, which does not lie below it"
        for module, source in sources.items()
        for other in internal_imports(source, HEIGHT)
        if other not in HEIGHT or HEIGHT[other] >= HEIGHT[module]
    ]


def border_faults(sources: Mapping[str, str]) -> list[str]:
    """launch takes only the ground floor of trainer; trainer takes nothing of launch."""
    return [
        f"{module} imports {other}"
        for module, source in sources.items()
        for other in internal_imports(source, HEIGHT)
        if other.split(".")[0] != module.split(".")[0] and (module.startswith("trainer") or other not in GROUND)
    ]


def find_cycle(sources: Mapping[str, str]) -> list[str]:
    graph = {module: set(internal_imports(source, sources)) for module, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def hidden_imports(sources: Mapping[str, str]) -> list[str]:
    """Internal imports that are not plain statements at the top of a file."""
    faults = []
    for module, source in sources.items():
        tree = ast.parse(source)
        below = [node for node in ast.walk(tree) if node not in tree.body]
        faults += [f"{module}: {name}" for node in below for name in imported_names(node) if is_internal(name)]
    return faults


def used_names(source: str) -> Iterator[str]:
    """Dotted names that a file imports or reaches through what it imported, under their real names."""
    tree = ast.parse(source)
    real = {"__import__": "__import__"}
    for node in ast.walk(tree):
        yield from imported_names(node)
        if isinstance(node, ast.Import):
            real |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            real |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts, node = [node.attr, *parts], node.value
        if isinstance(node, ast.Name) and node.id in real:
            yield ".".join((real[node.id], *parts))


def lies_in(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


def door_faults(sources: Mapping[str, str]) -> list[str]:
    return sorted(
        {
            f"{module} uses {library}"
            for module, source in sources.items()
            for name in used_names(source)
            for library, files in DOORS.items()
            if lies_in(name, library) and module not in files
        }
    )


def heavy_faults(sources: Mapping[str, str]) -> list[str]:
    """launch and the ground floor run on login nodes: no torch there, not even inside a function."""
    return [
        f"{module} imports {name}"
        for module, source in sources.items()
        if module.startswith("launch") or module in GROUND
        for name in used_names(source)
        if any(lies_in(name, library) for library in HEAVY)
    ]


def test_every_module_has_a_floor_and_every_floor_its_modules() -> None:
    assert table_faults(SOURCES) == []
    assert table_faults({**SOURCES, "trainer.new": ""}) == ["trainer.new: on no floor"]
    assert table_faults({module: "" for module in HEIGHT if module != "trainer.loop"}) == [
        "trainer.loop: on a floor, but not on disk"
    ]


def test_package_files_hold_a_docstring_at_most() -> None:
    packages = [path for top in ("launch", "trainer") for path in (REPOSITORY / top).rglob("__init__.py")]
    assert [path for path in packages if not is_only_a_docstring(path.read_text(encoding="utf-8"))] == []
    assert not is_only_a_docstring('"""Text."""\nfrom trainer.loop import train\n')


def test_imports_go_down() -> None:
    assert floor_faults(SOURCES) == []
    up = "from trainer import loop\n"
    assert floor_faults({"trainer.loss": up}) == ["trainer.loss imports trainer.loop, which does not lie below it"]
    assert len(floor_faults({"trainer.data.sources": "from trainer.data.collate import Batch\n"})) == 1
    assert len(floor_faults({"trainer.loop": "from . import loss\n"})) == 1
    assert len(floor_faults({"trainer.loop": "import trainer.config\n"})) == 1  # a package is not a module


def test_launch_takes_only_the_ground_floor_of_trainer_and_trainer_nothing_of_launch() -> None:
    assert border_faults(SOURCES) == []
    assert border_faults({"launch.local": "import trainer.loss\n"}) == ["launch.local imports trainer.loss"]
    assert border_faults({"trainer.worker": "import launch.machine\n"}) == ["trainer.worker imports launch.machine"]


def test_imports_make_no_circle() -> None:
    assert find_cycle(SOURCES) == []
    circle = {"trainer.a": "import trainer.b\n", "trainer.b": "def f():\n    from trainer import a\n"}
    assert set(find_cycle(circle)) == set(circle)


def test_internal_imports_stand_at_the_top_of_a_file() -> None:
    assert hidden_imports(SOURCES) == []
    assert hidden_imports({"trainer.a": "def f():\n    import trainer.b\n"}) == ["trainer.a: trainer.b"]
    assert hidden_imports({"trainer.a": "if True:\n    from launch import c\n"}) == ["trainer.a: launch.c"]


def test_every_library_has_one_door() -> None:
    assert door_faults(SOURCES) == []


@pytest.mark.parametrize(
    ("source", "library"),
    [
        ("import deepspeed\n", "deepspeed"),
        ("def f():\n    from peft.tuners import lora\n", "peft"),
        ("import torch\n\ntorch.distributed.barrier()\n", "torch.distributed"),
        ("import torch as t\n\nt.distributed.barrier()\n", "torch.distributed"),
        ("from torch import distributed\n", "torch.distributed"),
        ("import torch.distributed as dist\n", "torch.distributed"),
        ("from torch.utils.tensorboard import SummaryWriter\n", "torch.utils.tensorboard"),
        ("import os\n\nhome = os.environ['HOME']\n", "os.environ"),
        ("from os import environ as e\n", "os.environ"),
        ("import os\n\nos.getenv('HOME')\n", "os.getenv"),
        ("import os\n\nos.system('ls')\n", "os.system"),
        ("import subprocess\n", "subprocess"),
        ("import importlib\n\nimportlib.import_module('deepspeed')\n", "importlib.import_module"),
        ("__import__('deepspeed')\n", "__import__"),
    ],
)
def test_a_library_used_beside_its_door_is_found(source: str, library: str) -> None:
    assert door_faults({"trainer.loop": source}) == [f"trainer.loop uses {library}"]


def test_names_that_only_resemble_a_library_pass() -> None:
    assert door_faults({"trainer.loop": "import os\nimport torch\n\nos.getpid()\ndatasets = torch.utils.data\n"}) == []


def test_launch_and_the_ground_floor_never_import_torch() -> None:
    assert heavy_faults(SOURCES) == []
    assert heavy_faults({"launch.plan": "def f():\n    import torch\n"}) == ["launch.plan imports torch"]
    assert heavy_faults({"trainer.loop": "import torch\n"}) == []
