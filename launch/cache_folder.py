"""Folders made once from installed packages, and used only while their hashes hold.

A folder is built beside its place and appears by one rename, so it is whole or
absent. Its manifest names the packages it came from and the SHA-256 of every file.
Knows nothing of what the files mean.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MANIFEST_NAME = "MANIFEST.json"

Notify = Callable[[str], None]


class DemoAssetError(Exception):
    """A package that the demo reads is not installed; the message says how to install it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPackage:
    """Where pip put a package, found without importing it."""

    distribution: str
    """Name that pip knows."""
    version: str
    """Installed version, as the package's metadata states it."""
    folder: Path
    """Folder of the package's files."""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def installed_package(distribution: str, *, module: str, requirements: str) -> InstalledPackage:
    """The package that provides `module`; DemoAssetError names the pip command that installs it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise DemoAssetError(
            f"the demo needs the package {distribution}, which is not installed here; run: "
            f"pip install --no-deps -r {requirements}"
        )
    return InstalledPackage(
        distribution=distribution,
        version=importlib.metadata.version(distribution),
        folder=Path(spec.origin).parent,
    )


def prepare_folder(folder: Path, *, source: str, build: Callable[[Path], None], notify: Notify) -> Path:
    """Return `folder` with every file as its manifest says, building it where it is not.

    `source` names all that the files depend on: another value means another folder content.
    Processes on one file system take turns, and the later ones find the work done.
    """
    if _fault(folder, source=source) is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder):
        fault = _fault(folder, source=source)
        if fault is not None:
            notify(f"{folder} {fault}: building it from {source}")
            _build_and_publish(folder, source=source, build=build)
    return folder


def _fault(folder: Path, *, source: str) -> str | None:
    """Why the folder cannot be used, as the end of a sentence; None if it can."""
    if not folder.is_dir():
        return "does not exist yet"
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="ascii"))
        found_source, digests = manifest["source"], dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"is damaged ({MANIFEST_NAME} is missing or unreadable)"
    if found_source != source:
        return f"was made from {found_source}"
    present = _files(folder)
    if set(present) != set(digests):
        return f"is damaged (other files than {MANIFEST_NAME} lists)"
    for name, path in present.items():
        if _sha256(path) != digests[name]:
            return f"is damaged ({name} does not match its SHA-256)"
    return None


def _build_and_publish(folder: Path, *, source: str, build: Callable[[Path], None]) -> None:
    """Caller holds the lock, so that these two names are nobody else's."""
    partial = folder.with_name(f".{folder.name}.partial")
    rejected = folder.with_name(f".{folder.name}.rejected")
    for leftover in (partial, rejected):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir()
    try:
        build(partial)
        digests = {name: _sha256(path) for name, path in _files(partial).items()}
        manifest = json.dumps({"source": source, "files": digests}, indent=2) + "\n"
        (partial / MANIFEST_NAME).write_text(manifest, encoding="ascii")
        if folder.exists():
            folder.rename(rejected)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(rejected, ignore_errors=True)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One process at a time. The kernel drops the lock with the process, so none goes stale."""
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _files(folder: Path) -> dict[str, Path]:
    """Every file below the folder but the manifest, by its relative POSIX path, sorted."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path for name, path in sorted(found.items()) if path.is_file() and name != MANIFEST_NAME}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
