"""Texts to token ids, many at a time.

Prompt and response are tokenised apart and joined as ids, so that training and
generation cut the text at the same place. The end-of-text token is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trainer.config.errors import ConfigError, DataError
from trainer.data.chat import (
    Segment,
    TrainOn,
    batch_ids,
    chat_segments,
    plain_segments,
    refuse_special_tokens,
    special_token_pattern,
)
from trainer.data.templates import Rendered

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Ids of one example and what of it carries the loss."""

    input_ids: Sequence[int] | np.ndarray
    spans: tuple[Span, ...] = ()
    """Trained ids: half-open ranges, in order, none empty."""

    label: int | None = None
    """Class of the whole example (objective: classification)."""

    @property
    def num_targets(self) -> int:
        """Ids that carry loss; nothing predicts the first one."""
        return sum(end - max(start, 1) for start, end in self.spans)

    def truncated(self, length: int) -> "TokenizedExample":
        """The first `length` ids of it."""
        spans = tuple((start, min(end, length)) for start, end in self.spans if start < length)
        return TokenizedExample(self.input_ids[:length], spans, self.label)


def tail(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> TokenizedExample:
    """A prompt, and a response that carries the loss."""
    length = len(prompt_ids) + len(response_ids)
    return TokenizedExample([*prompt_ids, *response_ids], ((len(prompt_ids), length),) if response_ids else ())


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a model folder. A missing pad token is replaced by the end-of-text token: pads carry no loss.

    Raises:
        ConfigError: the folder holds no tokenizer that transformers can read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.path: {folder}: no tokenizer that transformers can read ({reason}).") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class PromptEncoder:
    """Texts to ids for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str] = ()) -> None:
        """`labels`: classes of a classifier, whose texts are encoded whole and never continued."""
        if tokenizer.eos_token_id is None and not labels:
            raise DataError("model.path: its tokenizer has no end-of-text token: a trained answer could never end.")
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self.start_ids = _start_ids(tokenizer)
        self._control_tokens = special_token_pattern(tokenizer)

    def prompt_ids(self, prompt: str, *, chat_template: bool = False) -> list[int]:
        """Ids of a prompt, ready to be continued by the response.

        Raises:
            DataError: a chat template is asked for and the tokenizer has none.
        """
        if chat_template:
            return self._many([self._one_turn(prompt)], special=True)[0]
        return [*self.start_ids, *self.text_ids(prompt)]

    def response_ids(self, response: str) -> list[int]:
        """Ids of a response with the end-of-text token."""
        return [*self.text_ids(response), self._end_id]

    def whole_ids(self, text: str) -> list[int]:
        """Ids of a text that a classifier reads, with the special tokens that its tokenizer puts around it."""
        return self._many([text], around=True)[0]

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

    def encode(
        self, examples: Sequence[Rendered], *, chat_template: bool = False, train_on: TrainOn = "all"
    ) -> list[TokenizedExample]:
        """Training examples: prompt and response, or a conversation, for a language model; text and class for a
        classifier.

        Raises:
            DataError: an unknown label, or a conversation that the model's chat template cannot hold.
        """
        if self.labels:
            labels = [self.label_index(example.response, where=example.where) for example in examples]
            texts = self._many([example.prompt for example in examples], around=True)
            return [TokenizedExample(ids, label=label) for ids, label in zip(texts, labels, strict=True)]
        if any(example.messages for example in examples):
            return self._conversations(examples, train_on=train_on)
        if chat_template:
            prompts = self._many([self._one_turn(example.prompt) for example in examples], special=True)
        else:
            prompts = [[*self.start_ids, *ids] for ids in self._many([e.prompt for e in examples])]
        responses = self._many([example.response for example in examples])
        return [tail(prompt, [*response, self._end_id]) for prompt, response in zip(prompts, responses, strict=True)]

    def turn_ids(self, example: Rendered) -> tuple[list[int], list[int]]:
        """Ids of a conversation up to its last answer, and of that answer with the end of the turn.

        Raises:
            DataError: as `encode`.
        """
        (encoded,) = self._conversations([example], train_on="last")
        ((start, _),) = encoded.spans
        return list(encoded.input_ids[:start]), list(encoded.input_ids[start:])

    def text_ids(self, text: str) -> list[int]:
        """Ids of bare text. What looks like a special token in it is text: data must not forge an end of text."""
        return self._many([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as trimmed text, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows up; it carries no loss."""
        return int(self.tokenizer.pad_token_id)

    @property
    def _end_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def _has_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def refuse_missing_template(self) -> None:
        """Raise where prompts are to be wrapped in a chat template and the tokenizer has none."""
        if not self._has_template:
            raise DataError("chat_template: true, but the model's tokenizer has no chat template. Set it to false.")

    def _one_turn(self, prompt: str) -> str:
        self.refuse_missing_template()
        turn = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))

    def _conversations(self, examples: Sequence[Rendered], *, train_on: TrainOn) -> list[TokenizedExample]:
        segments = [self._segments(example, train_on=train_on) for example in examples]
        start_ids = () if self._has_template else self.start_ids  # a chat template writes its own beginning
        return [
            TokenizedExample(ids, tuple(spans))
            for ids, spans in batch_ids(segments, tokenizer=self.tokenizer, start_ids=start_ids)
        ]

    def _segments(self, example: Rendered, *, train_on: TrainOn) -> list[Segment]:
        refuse_special_tokens(example.messages, pattern=self._control_tokens, where=example.where)
        if not self._has_template:
            return plain_segments(example.messages, train_on=train_on)
        return chat_segments(example.messages, tokenizer=self.tokenizer, train_on=train_on, where=example.where)

    def _many(self, texts: Sequence[str], *, special: bool = False, around: bool = False) -> list[list[int]]:
        """Ids of many texts. special: the texts of special tokens are those tokens. around: put such tokens around."""
        if not self.tokenizer.is_fast:
            return [
                list(self.tokenizer.encode(text, add_special_tokens=around, split_special_tokens=not special))
                for text in texts
            ]
        backend = self.tokenizer.backend_tokenizer  # a third of the time of a call through transformers
        backend.encode_special_tokens = not special
        backend.no_truncation()  # a tokenizer.json may ask for either, and cut examples in silence
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=around)]


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token where the tokenizer itself puts one: a model that never saw it must not now."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer.encode("a")[:1] == [bos] else []
