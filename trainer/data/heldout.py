"""The texts that nobody may train on, in files that every process that looks for them reads."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from trainer.data.templates import Rendered


def write_heldout(path: Path, capability: str, examples: Iterable[Rendered]) -> None:
    """The held-out examples of one capability."""
    with path.open("w", encoding="utf-8") as file:
        for example in examples:
            row = [capability, example.example_id, example.content, example.bare_prompt]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_heldout(paths: Sequence[Path]) -> tuple[dict[str, list[tuple[str, str]]], dict[str, dict[str, str]]]:
    """(id and text of each example by capability, prompts by capability and id), as `Leakage` takes them."""
    texts: dict[str, list[tuple[str, str]]] = {}
    prompts: dict[str, dict[str, str]] = {}
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                capability, example_id, content, prompt = json.loads(line)
                texts.setdefault(capability, []).append((example_id, content))
                prompts.setdefault(capability, {})[example_id] = prompt
    return texts, prompts
