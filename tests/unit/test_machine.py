"""What the machine says of itself: GPUs as the driver and CUDA_VISIBLE_DEVICES have them, caches as users set them."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch import machine
from launch.machine import child_environment, this_machine
from tests.recipe import Recipe
from trainer.config.errors import ConfigError

MIB = 2**20
TWO_GPUS = """\
0, GPU-11111111-aaaa-bbbb-cccc-000000000000, 81559
1, GPU-22222222-aaaa-bbbb-cccc-000000000000, 24564
"""
FIRST, SECOND = 81559 * MIB, 24564 * MIB
VARIABLES = ("CUDA_VISIBLE_DEVICES", "RETAIN_CACHE", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")

Driver = Callable[[str], list[tuple[str, ...]]]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Pretends that an NVIDIA driver is loaded and that nvidia-smi answers; gives the commands that were asked."""

    def install(answer: str) -> list[tuple[str, ...]]:
        asked: list[tuple[str, ...]] = []

        def run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            asked.append(tuple(argv))
            return subprocess.CompletedProcess(argv, 0, stdout=answer, stderr="")

        pretend_driver(monkeypatch)
        monkeypatch.setattr(machine.subprocess, "run", run)
        return asked

    return install


def pretend_driver(monkeypatch: pytest.MonkeyPatch, *, loaded: bool = True) -> None:
    exists = Path.exists

    def pretended(path: Path) -> bool:
        return loaded if str(path) == "/proc/driver/nvidia" else exists(path)

    monkeypatch.setattr(Path, "exists", pretended)


def test_every_gpu_is_seen_with_its_memory(driver: Driver) -> None:
    asked = driver(TWO_GPUS)
    found = this_machine()
    assert found.gpu_memory_bytes == (FIRST, SECOND)
    assert found.num_gpus == 2
    assert [argv[0] for argv in asked] == ["nvidia-smi"]


@pytest.mark.parametrize(
    ("visible", "memory"),
    [
        ("0", (FIRST,)),
        ("1", (SECOND,)),
        ("0, 1", (FIRST, SECOND)),
        ("GPU-22222222-aaaa-bbbb-cccc-000000000000", (SECOND,)),
        ("GPU-1111", (FIRST,)),
        ("", ()),
        ("-1", ()),
        ("7", ()),
    ],
)
def test_only_visible_gpus_count(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, visible: str, memory: tuple[int, ...]
) -> None:
    driver(TWO_GPUS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert this_machine().gpu_memory_bytes == memory


def test_nvidia_smi_is_not_asked_where_no_driver_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        pytest.fail("nvidia-smi was started")

    pretend_driver(monkeypatch, loaded=False)
    monkeypatch.setattr(machine.subprocess, "run", refuse)
    assert this_machine().gpu_memory_bytes == ()


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError("nvidia-smi"),
        subprocess.TimeoutExpired("nvidia-smi", 20),
        subprocess.CalledProcessError(9, "nvidia-smi"),
    ],
    ids=["not installed", "hangs", "fails"],
)
def test_an_nvidia_smi_that_does_not_answer_means_no_gpu(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise failure

    pretend_driver(monkeypatch)
    monkeypatch.setattr(machine.subprocess, "run", fail)
    assert this_machine().gpu_memory_bytes == ()


def test_a_gpu_that_does_not_tell_its_memory_is_no_traceback(driver: Driver) -> None:
    driver("0, GPU-11111111-aaaa-bbbb-cccc-000000000000, [N/A]\n")
    this_machine()


def test_caches_are_where_the_user_puts_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_driver(monkeypatch, loaded=False)
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "retain"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    found = this_machine()
    assert found.cache_folder == tmp_path / "retain"
    assert found.hub_cache_folder == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "models"))
    assert this_machine().hub_cache_folder == tmp_path / "models"


def test_caches_are_in_the_users_cache_folder_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_driver(monkeypatch, loaded=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RETAIN_CACHE", "")
    found = this_machine()
    assert found.cache_folder == tmp_path / ".cache" / "retain"
    assert found.hub_cache_folder == tmp_path / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert this_machine().cache_folder == tmp_path / "xdg" / "retain"


def test_a_relative_cache_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_driver(monkeypatch, loaded=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAIN_CACHE", "cache")
    assert this_machine().cache_folder == tmp_path / "cache"


def test_operators_of_different_hosts_lie_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_driver(monkeypatch, loaded=False)
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path))
    folders = set()
    for host in ("node1", "node2"):
        monkeypatch.setattr(machine.platform, "node", lambda name=host: name)
        folders.add(this_machine().operator_folder)
    assert folders == {tmp_path / "torch_extensions" / "node1", tmp_path / "torch_extensions" / "node2"}


def test_processor_and_memory_are_those_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_driver(monkeypatch, loaded=False)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0, 3, 5})
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(machine.os, "sysconf", sizes.__getitem__)
    found = this_machine()
    assert (found.num_cores, found.memory_bytes) == (3, 4_096_000)


def test_the_plans_variables_win_over_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("HF_HOME", "/mine")
    environment = child_environment({"OMP_NUM_THREADS": "2"})
    assert (environment["OMP_NUM_THREADS"], environment["HF_HOME"]) == ("2", "/mine")


def test_a_driver_whose_gpus_do_not_answer_is_not_taken_for_a_machine_without(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise FileNotFoundError("nvidia-smi")

    pretend_driver(monkeypatch)
    monkeypatch.setattr(machine.subprocess, "run", fail)
    with pytest.raises(
        ConfigError, match=r"layout\.device: auto, .* its GPUs do not answer \(nvidia-smi: nvidia-smi\)"
    ):
        recipe.plan(machine=this_machine())
