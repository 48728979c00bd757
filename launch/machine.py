"""What is really here: processors, memory, GPUs, caches. The only file of `launch` that reads the environment.

Answers without torch, in milliseconds: nvidia-smi is asked only where an NVIDIA driver is loaded.
"""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

NVIDIA_SMI_TIMEOUT_SECONDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The facts that a plan depends on."""

    num_cores: int
    """Processor cores that this process may use."""

    memory_bytes: int
    """Main memory of the machine."""

    gpu_memory_bytes: tuple[int, ...]
    """Memory of each visible NVIDIA GPU."""

    cache_folder: Path
    """RETAIN_CACHE: compiled operators, demo assets."""

    hub_cache_folder: Path
    """Where huggingface_hub keeps downloaded models."""

    gpu_error: str = ""
    """Why the GPUs of a loaded NVIDIA driver could not be asked; empty where there was no trouble."""

    host: str
    """Name of this host."""

    @property
    def operator_folder(self) -> Path:
        """Compiled operators of this host: they are built for its processor, and its locks are ours to judge."""
        return self.cache_folder / "torch_extensions" / self.host

    @property
    def num_gpus(self) -> int:
        """Visible GPUs."""
        return len(self.gpu_memory_bytes)


def this_machine() -> Machine:
    """Look at the machine that this process runs on."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpu_memory_bytes, gpu_error = _visible_gpus(memory_bytes)
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hf_home = Path(os.environ.get("HF_HOME") or user_cache / "huggingface").expanduser()
    return Machine(
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes,
        gpu_memory_bytes=gpu_memory_bytes,
        gpu_error=gpu_error,
        cache_folder=Path(os.environ.get("RETAIN_CACHE") or user_cache / "retain").absolute(),
        host=platform.node(),
        hub_cache_folder=Path(os.environ.get("HF_HUB_CACHE") or hf_home / "hub").absolute(),
    )


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """The user's own environment with the plan's variables on top."""
    return {**os.environ, **extra}


def _visible_gpus(main_memory_bytes: int) -> tuple[tuple[int, ...], str]:
    """(memory of each visible GPU, what went wrong). A GPU that shares main memory reports none of its own."""
    if not Path("/proc/driver/nvidia").exists():
        return (), ""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return (), f"nvidia-smi: {error}"
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    memory = tuple(
        int(mebibytes) * 2**20 if mebibytes.isdigit() else main_memory_bytes
        for index, uuid, mebibytes in rows
        if wanted is None or index in wanted or any(uuid.startswith(name) for name in wanted)
    )
    return memory, ""
