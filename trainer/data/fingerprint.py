"""What prepared data was made from, as one hash: sources by content, wording, tokenizer and versions.

A file is read once for its hash; as long as its size and times stay, the hash is remembered.
"""

import hashlib
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.config.data_schema import HubSource, LmEvalSource, Source
from trainer.config.run_folder import read_json_object, write_json
from trainer.data.sources import hub_fingerprint, list_files, lm_eval_fingerprint

FORMAT_NUMBER = 1
"""Goes up when the same input gives other prepared data."""

LIBRARIES = ("transformers", "tokenizers", "jinja2", "numpy")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "chat_template*", "*.model")
MODEL_FILES = ("*.safetensors", "*.index.json", "config.json", "generation_config.json", *TOKENIZER_FILES)
SETTLED_SECONDS = 2.0
"""A file that was changed more recently may change again within the same tick of its clock."""


class Fingerprints:
    """Hashes of sources and tokenizers; those of files are remembered in a folder."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory

    def source(self, source: Source) -> list[str]:
        """What a source holds now, file by file in their order.

        Raises:
            DataError: a file is missing or of no known kind, or what is no file cannot be read.
        """
        if isinstance(source, HubSource):
            return [hub_fingerprint(source)]
        if isinstance(source, LmEvalSource):
            return [lm_eval_fingerprint(source)]
        # The ending says how a file is read; where it lies says nothing.
        return [
            f"{''.join(path.suffixes[-2:])} {self.file(path)}"
            for path in list_files((source,) if isinstance(source, str) else source)
        ]

    def tokenizer(self, model_folder: Path) -> list[str]:
        """The files that make the tokenizer of a model."""
        paths = {path for pattern in TOKENIZER_FILES for path in model_folder.glob(pattern) if path.is_file()}
        return [f"{path.name} {self.file(path)}" for path in sorted(paths)]

    def model(self, folder: Path) -> list[str]:
        """The files that make a model with its tokenizer. Large ones take a while, the first time."""
        paths = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
        return [f"{path.name} {self.file(path)}" for path in sorted(paths)]

    def file(self, path: Path) -> str:
        """SHA-256 of a file's bytes."""
        found = path.resolve()
        status = found.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        memo = self._memory / f"{_digest(str(found))}.json"
        known = read_json_object(memo)
        if known is not None and known.get("state") == state:
            return str(known["sha256"])
        with found.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - status.st_ctime > SETTLED_SECONDS:
            write_json(memo, {"path": str(found), "state": state, "sha256": content})
        return content


def key_of(*parts: Any) -> str:
    """One name for everything in `parts` (JSON values), this version of the format and the libraries' versions."""
    libraries = [f"{name} {version(name)}" for name in LIBRARIES]
    return _digest(json.dumps([FORMAT_NUMBER, libraries, parts], sort_keys=True, ensure_ascii=False))[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
