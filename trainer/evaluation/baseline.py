"""The measurement before training, kept so that the next run of the same model and suite need not make it again.

One file a measurement, named by everything that it depends on: one byte of a prompt, one weight or another precision
is another name. What it holds is checked against its own hashes before it is used.
"""

import hashlib
import json
import os
import platform
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer.config.errors import DataError
from trainer.config.plan import Plan
from trainer.config.run_folder import RunFolder
from trainer.data.fingerprint import Fingerprints
from trainer.evaluation.measure import Measurement
from trainer.model import base_dtype

FORMAT_NUMBER = 1
"""Goes up when the same model and suite give other files."""

MANIFEST = "manifest.json"
LIBRARIES = ("torch", "transformers", "bitsandbytes", "sacrebleu")


@dataclass(frozen=True, slots=True)
class BaselineCache:
    """One measurement, in the cache or not yet."""

    path: Path
    parts: dict[str, Any]
    """What its name is the hash of."""

    def restore(self, folder: RunFolder) -> bool:
        """Put the measurement into a run folder.

        Returns:
            Whether there was one.

        Raises:
            DataError: the file is not what was written; the run folder is as before.
        """
        if not self.path.is_file():
            return False
        target = folder.records(0, "any").parent
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            _unpack(self.path, part, parts=self.parts)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return True

    def store(self, folder: RunFolder) -> None:
        """Keep the measurement of a run folder. Of two processes that do so at once, the later one's stays, whole."""
        source = folder.records(0, "any").parent
        files = {str(path.relative_to(source)): path for path in sorted(source.rglob("*")) if path.is_file()}
        manifest = {
            "parts": self.parts,
            "sha256": {name: _sha256(path.read_bytes()) for name, path in files.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{platform.node()}.{os.getpid()}.part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(MANIFEST, json.dumps(manifest, indent=2))
            for name, path in files.items():
                archive.write(path, name)
        part.replace(self.path)


def baseline_of(plan: Plan, measurement: Measurement) -> BaselineCache:
    """Where the measurement of a run's base is kept."""
    config = plan.config
    settings = {
        "head": [*config.labels, str(config.run.seed)] if config.labels else [],
        "precision": config.training.precision,
        "dtype": str(base_dtype(config)),
        "quantisation": config.model.quantisation,
        "attention": config.model.attention,
        "device": plan.device,
        "null_flips": config.evaluation.null_flips,
    }
    return baseline_cache(Path(plan.cache_folder), Path(plan.model_folder), measurement, settings=settings)


def baseline_cache(
    cache: Path, model_folder: Path, measurement: Measurement, *, settings: dict[str, Any]
) -> BaselineCache:
    """Where the measurement of this model by this suite in this way is kept.

    Args:
        settings: JSON values that numbers depend on; `device` is one of them.
    """
    parts = {
        "format": FORMAT_NUMBER,
        "model": Fingerprints(cache / "data" / "files").model(model_folder),
        "suite": suite_parts(measurement),
        "settings": settings,
        "hardware": torch.cuda.get_device_name() if settings["device"] == "cuda" else platform.machine(),
        "examples_per_batch": measurement.examples_per_batch,
        "drift_tokens": measurement.drift_tokens,
        "libraries": [f"{name} {version(name)}" for name in LIBRARIES],
    }
    key = _sha256(json.dumps(parts, sort_keys=True).encode())[:32]
    return BaselineCache(cache / "baselines" / f"{key}.zip", parts)


def suite_parts(measurement: Measurement) -> dict[str, str]:
    """By task, a hash of exactly what the model is given, what it should say, and how that is scored."""
    parts = {}
    for task, data in zip(measurement.tasks, measurement.data, strict=True):
        spec = task.spec
        digest = hashlib.sha256(repr((task.scorer, spec.kind, spec.max_new_tokens, spec.end_of_text)).encode())
        for one in data.examples:
            spoken = [one.example_id, one.prompt_sha256, one.prompt, one.target, one.candidates, one.cluster]
            digest.update(json.dumps(spoken).encode())
        parts[task.name] = digest.hexdigest()
    return parts


def _unpack(path: Path, folder: Path, *, parts: dict[str, Any]) -> None:
    """Unpack and check."""
    damaged = f"{path}: not the baseline that was stored there"
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(MANIFEST))
            contents = {name: archive.read(name) for name in archive.namelist() if name != MANIFEST}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{damaged} ({type(error).__name__}: {error})") from None
    if not isinstance(manifest, dict) or manifest.get("parts") != parts:
        raise DataError(f"{damaged} (it is of another model, suite or way to measure)")
    if {name: _sha256(content) for name, content in contents.items()} != manifest.get("sha256"):
        raise DataError(f"{damaged} (the hash of a file in it differs)")
    for name, content in contents.items():
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{damaged} (it holds a file outside of its folder: {name})")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
