"""Prompt and response texts to token ids, once for each task, kept as an Arrow table.

Prompt and response are tokenised apart and joined as ids, so that training and
generation cut the text at the same place. The end-of-text token is trained.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from trainer.config.errors import DataError
from trainer.data.sources import as_dataset
from trainer.data.templates import Rendered


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Ids of one example; the loss is on the last `num_target_tokens` of them, or on `label`."""

    input_ids: list[int]
    num_target_tokens: int
    label: int | None = None
    """Class of the whole example (objective: classification)."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """The training examples of one task."""

    name: str
    table: datasets.Dataset
    num_dropped_overlength: int
    num_bad: int = 0
    """Examples that could not be read or put into words, and were skipped."""

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> TokenizedExample:
        row = self.table[index]
        return TokenizedExample(row["input_ids"], row["num_target_tokens"], row["label"])

    def example_tokens(self) -> np.ndarray:
        """Length of each example in tokens."""
        return np.asarray(pc.list_value_length(self.table.data.column("input_ids")), dtype=np.int64)


class PromptEncoder:
    """Texts to ids for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str] = ()) -> None:
        """`labels`: classes of a classifier, whose texts are encoded whole and never continued."""
        if tokenizer.eos_token_id is None and not labels:
            raise DataError("model.path: its tokenizer has no end-of-text token: a trained answer could never end.")
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self.start_ids = _start_ids(tokenizer)

    def prompt_ids(self, prompt: str, *, chat_template: bool = False) -> list[int]:
        """Ids of a prompt, ready to be continued by the response.

        Raises:
            DataError: a chat template is asked for and the tokenizer has none.
        """
        if chat_template:
            if not self.tokenizer.chat_template:
                raise DataError("chat_template: true, but the model's tokenizer has no chat template. Set it to false.")
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        return [*self.start_ids, *self.text_ids(prompt)]

    def response_ids(self, response: str) -> list[int]:
        """Ids of a response with the end-of-text token."""
        return [*self.text_ids(response), self.tokenizer.eos_token_id]

    def whole_ids(self, text: str) -> list[int]:
        """Ids of a text that a classifier reads, with the special tokens that its tokenizer puts around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=True, split_special_tokens=True))

    def label_index(self, response: str, *, where: str) -> int:
        """Class of a rendered response.

        Raises:
            DataError: it is none of the labels.
        """
        if response.strip() not in self.labels:
            raise DataError(
                f"{where}: found label {response.strip()!r}, wanted one of classification.labels "
                f"({', '.join(self.labels)})."
            )
        return self.labels.index(response.strip())

    def encode(self, example: Rendered, *, chat_template: bool, where: str) -> TokenizedExample:
        """A training example: prompt and response for a language model, text and class for a classifier.

        Raises:
            DataError: an unknown label, or a chat template that does not exist.
        """
        if self.labels:
            return TokenizedExample(self.whole_ids(example.prompt), 0, self.label_index(example.response, where=where))
        prompt = self.prompt_ids(example.prompt, chat_template=chat_template)
        response = self.response_ids(example.response)
        return TokenizedExample([*prompt, *response], len(response))

    def text_ids(self, text: str) -> list[int]:
        """Ids of bare text. What looks like a special token in it is text: data must not forge an end of text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, ids: list[int]) -> str:
        """Generated ids as trimmed text, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows up; it carries no loss."""
        return int(self.tokenizer.pad_token_id)


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token where the tokenizer itself puts one: a model that never saw it must not now."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer.encode("a")[:1] == [bos] else []


def tokenize_task(
    name: str,
    rendered: Iterable[Rendered],
    *,
    encoder: PromptEncoder,
    chat_template: bool,
    sequence_length_tokens: int,
    on_overlength: Literal["error", "drop"],
) -> TaskData:
    """Encode the training examples of a task.

    Raises:
        DataError: an example is too long and `on_overlength` is "error", or none is left.
    """
    rows: list[dict[str, Any]] = []
    overlength = 0
    for example in rendered:
        encoded = encoder.encode(
            example, chat_template=chat_template, where=f"data.tasks.{name}: example {example.example_id}"
        )
        length = len(encoded.input_ids)
        if length > sequence_length_tokens:
            overlength += 1
            if on_overlength == "error":
                raise DataError(
                    f"data.tasks.{name}: example {example.example_id} has {length} tokens, more than "
                    f"data.sequence_length_tokens {sequence_length_tokens}. Raise it, or set data.on_overlength=drop."
                )
            continue
        rows.append(asdict(encoded))
    if not rows:
        why = f"all {overlength} examples are over-long. Raise the length." if overlength else "no example to train on."
        raise DataError(f"data.tasks.{name}: empty data set: {why}")
    return TaskData(name, as_dataset(rows), overlength)
