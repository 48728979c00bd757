"""Conversations as token ids, with the trained spans found turn by turn.

Where a turn begins and ends follows from rendering the conversation up to it, never
from searching for a marker, so that no content can shift it. The pieces are tokenised
apart: training and generation cut the text at the same place. Knows nothing of files.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import jinja2
from transformers import PreTrainedTokenizerBase

from trainer.config.errors import DataError
from trainer.data.json_rows import as_row, parse_json

TrainOn = Literal["all", "last"]
ChatIds = tuple[list[int], list[tuple[int, int]]]
"""Ids of a conversation, and its trained spans in them: from the first up to, not including, the second."""

ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
SHAREGPT_ROLES = {**ROLES, "human": "user", "gpt": "assistant"}
UNREAD_KEYS = ("tool_calls", "function_call", "reasoning_content")
"""Words that some data keeps beside the content; passed over in silence they would be missing from the training."""

PROBE = "WORDS-OF-THE-ASSISTANT"
"""Put in an answer's place to see what the template writes after it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; the role is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the conversation that is tokenised apart from its neighbours."""

    text: str
    trained: bool
    ends_itself: bool = True
    """False: an answer without a mark of its end in the text, after which the end-of-text token is to be put."""


def read_messages(value: Any, *, where: str) -> tuple[Message, ...]:
    """The messages of one column: a list of role and content, or of ShareGPT's from and value, or its JSON text.

    Raises:
        DataError: it is no such list, or no conversation in which the assistant answers and has the last word.
    """
    rows = _parsed(value, where=where) if isinstance(value, str) else value
    if not isinstance(rows, list):
        found = "null" if rows is None else f"a value of type {type(rows).__name__}"
        raise DataError(f"{where}: found {found}, wanted a list of messages. Name the column that holds it.")
    if not rows:
        raise DataError(f"{where}: found an empty list, wanted a list of messages. Remove the row.")
    messages = tuple(_message(row, where=f"{where}: message {number}") for number, row in enumerate(rows, start=1))
    _check_order(messages, where=where)
    return messages


def _parsed(text: str, *, where: str) -> Any:
    try:
        return as_row({"messages": parse_json(text)})["messages"]
    except ValueError as error:
        found = f"found a text that cannot be read as JSON ({str(error).rstrip('.')})"
        raise DataError(f"{where}: {found}, wanted a list of messages. Name the column that holds it.") from None


def _message(row: Any, *, where: str) -> Message:
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {row!r:.60}, wanted an object with role and content. Correct it.")
    is_sharegpt = row.get("role") is None and row.get("from") is not None
    role_key, key, roles = ("from", "value", SHAREGPT_ROLES) if is_sharegpt else ("role", "content", ROLES)
    role = row.get(role_key)
    if not isinstance(role, str) or role not in roles:
        raise DataError(f"{where}: found {role_key} {role!r:.60}, wanted one of {', '.join(roles)}. Correct it.")
    for unread in UNREAD_KEYS:
        if row.get(unread):
            raise DataError(f"{where}: found {unread}, wanted all words in {key}. Write them there, or remove it.")
    return Message(roles[role], _content(row.get(key), key=key, where=where))


def _content(value: Any, *, key: str, where: str) -> str:
    """The text of a message, its parts joined."""
    parts = value if isinstance(value, list) else [{"type": "text", "text": value}]
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise DataError(f"{where}: found a part of type {kind!r:.60} in {key}, wanted text only. Remove the row.")
        if not isinstance(part.get("text"), str):
            found = "nothing" if part.get("text") is None else f"{part['text']!r:.60}"
            raise DataError(f"{where}: found {found} in {key}, wanted a text. Correct it, or remove the row.")
        texts.append(part["text"])
    content = "".join(texts)
    if not content.strip():
        raise DataError(f"{where}: found a blank {key}, wanted words. Correct it, or remove the row.")
    return content


def _check_order(messages: Sequence[Message], *, where: str) -> None:
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise DataError(f"{where}: no message by the assistant, wanted an answer to learn from. Remove the row.")
    for number, (before, role) in enumerate(pairwise(["nobody", *roles]), start=1):
        if role == "system" and number > 1:
            raise DataError(f"{where}: message {number} is by the system, wanted it first. Move it, or remove it.")
        if role == "assistant" and before == "assistant":
            raise DataError(
                f"{where}: messages {number - 1} and {number} are both by the assistant, wanted a question between "
                "them. Join them, or remove the row."
            )
        if role == "assistant" and before in ("nobody", "system"):
            raise DataError(
                f"{where}: message {number} is by the assistant and answers nothing, wanted a message by user or tool "
                "before it. Remove the message."
            )
    if roles[-1] != "assistant":
        raise DataError(
            f"{where}: the last message is by {roles[-1]}, wanted the assistant: nothing is learnt from what follows "
            "its last answer. Drop the message."
        )


def special_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds the text of any special token, the longest first. Made once: a tokenizer may have thousands of them."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def refuse_special_tokens(messages: Sequence[Message], *, pattern: re.Pattern[str], where: str) -> None:
    """See that no content holds a control token's text: read as the template's own are, it would forge a turn.

    Raises:
        DataError: a content holds what `pattern`, from `special_token_pattern`, finds.
    """
    for number, message in enumerate(messages, start=1):
        if found := pattern.search(message.content):
            raise DataError(
                f"{where}: message {number} holds {found[0]!r}, a control token of the model, wanted plain words. "
                "Take it out, or remove the row."
            )


def chat_segments(
    messages: Sequence[Message], *, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn, where: str
) -> list[Segment]:
    """A conversation of `read_messages` in the words of the chat template: in turn text to read and an answer to learn.

    A trained segment begins where generation would, and ends with the template's mark of the end of the turn. White
    space after that mark belongs to the next segment; what follows the last one is left out.

    Raises:
        DataError: the template refuses the conversation, or its answers cannot be told from how it renders.
    """
    whole = _rendered(messages, tokenizer=tokenizer, where=where)
    segments: list[Segment] = []
    done = 0
    for index in _trained_turns(messages, train_on=train_on):
        turn = messages[: index + 1]
        text = whole if len(turn) == len(messages) else _rendered(turn, tokenizer=tokenizer, where=where)
        start, after = _ends_of_answer(turn, text=text, tokenizer=tokenizer, where=where)
        end = len(text) - len(after) + len(after.rstrip())
        if not whole.startswith(text[:end]):
            raise DataError(
                f"{where}: the model's chat template rewrites earlier turns, here message {index + 1}: they cannot be "
                "trained as they were answered. Set train_on: last."
            )
        answer = Segment(whole[start:end], trained=True, ends_itself=bool(after.strip()))
        segments += [Segment(whole[done:start], trained=False), answer]
        done = end
    return segments


def _trained_turns(messages: Sequence[Message], *, train_on: TrainOn) -> list[int]:
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    return turns if train_on == "all" else turns[-1:]


def _ends_of_answer(
    turn: Sequence[Message], *, text: str, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[int, str]:
    """Where the last answer of a rendered conversation starts in `text`, and what the template wrote after it."""
    prompt = _rendered(turn[:-1], tokenizer=tokenizer, where=where, generate=True)
    # Not the content itself: templates trim it, put a space or an empty thought before it, or take its thought away.
    probe = _rendered([*turn[:-1], Message("assistant", PROBE)], tokenizer=tokenizer, where=where)
    _, found, after = probe.rpartition(PROBE)
    if not (found and text.startswith(prompt) and text[len(prompt) :].endswith(after)):
        raise DataError(
            f"{where}: the model's chat template shows message {len(turn)} otherwise than it would be generated. "
            "Give the tokenizer of model.path a template that begins an answer with its own generation prompt."
        )
    return len(prompt), after


def _rendered(
    messages: Sequence[Message], *, tokenizer: PreTrainedTokenizerBase, where: str, generate: bool = False
) -> str:
    """The text of a conversation, with `generate` up to where the assistant's next words would begin."""
    chat = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(chat, add_generation_prompt=generate, tokenize=False))
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{where}: the model's chat template refuses the conversation: {words}. Correct the row, or remove it."
        ) from None


def plain_segments(messages: Sequence[Message], *, train_on: TrainOn) -> list[Segment]:
    r"""A conversation of `read_messages` in our own words, for tokenizers without a chat template.

    The system's text and a blank line, then a line for each message, where | cuts and <end> is the end-of-text token:
    `Be brief.\n\nUser: Hi\nAssistant:| Hello<end>|\nUser: Bye\nAssistant:| Bye<end>`. An answer that is not trained is
    cut and ended all the same, so that the ids do not depend on `train_on`.
    """
    trained = _trained_turns(messages, train_on=train_on)
    segments: list[Segment] = []
    text = ""
    for index, message in enumerate(messages):
        if message.role == "system":
            text += f"{message.content}\n\n"
        elif message.role == "assistant":
            answer = Segment(f" {message.content}", trained=index in trained, ends_itself=False)
            segments += [Segment(f"{text}Assistant:", trained=False), answer]
            text = "\n"
        else:
            text += f"{message.role.capitalize()}: {message.content}\n"
    return segments


def segment_ids(
    segments: Sequence[Segment], *, tokenizer: PreTrainedTokenizerBase, start_ids: Sequence[int] = ()
) -> ChatIds:
    """Ids and trained spans of one conversation; see `batch_ids`."""
    return batch_ids([segments], tokenizer=tokenizer, start_ids=start_ids)[0]


def batch_ids(
    conversations: Sequence[Sequence[Segment]], *, tokenizer: PreTrainedTokenizerBase, start_ids: Sequence[int] = ()
) -> list[ChatIds]:
    """Ids and trained spans of many conversations, encoded together. Special tokens in the texts are read as such.

    `start_ids` are put before a conversation that does not begin with them; a chat template writes its own beginning.

    Raises:
        DataError: an answer lacks its end, and the tokenizer has no end-of-text token.
    """
    eos_id = tokenizer.eos_token_id
    if eos_id is None and not all(segment.ends_itself for segments in conversations for segment in segments):
        raise DataError("model.path: its tokenizer has no end-of-text token: a trained answer could never end.")
    encoded = iter(_encoded_apart(conversations, tokenizer=tokenizer))
    batch: list[ChatIds] = []
    for segments in conversations:
        ids: list[int] = []
        spans = []
        for segment in segments:
            start = len(ids)
            ids += next(encoded) if segment.ends_itself else [*next(encoded), eos_id]
            if segment.trained:
                spans.append((start, len(ids)))
        lead = [] if ids[: len(start_ids)] == list(start_ids) else list(start_ids)
        batch.append(([*lead, *ids], [(start + len(lead), end + len(lead)) for start, end in spans]))
    return batch


def _encoded_apart(chats: Sequence[Sequence[Segment]], *, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of each segment of each conversation, in order, as it goes on from the one before."""
    texts = [segment.text for segments in chats for segment in segments]
    *alone, letter, newline, joined = _encoded([*texts, "a", "\n", "\na"], tokenizer=tokenizer)
    if joined == newline + letter or not texts:
        return alone
    # Llama-2 and its kin put a space before each text that they encode. In the middle of a conversation nobody wrote
    # one: those ids would differ from what the model reads when the conversation goes on.
    before: list[str] = []
    for segments in chats:
        shown = [segment.text + ("" if segment.ends_itself else str(tokenizer.eos_token)) for segment in segments]
        before += ["", *shown][:-1]
    leads = _encoded(before, tokenizer=tokenizer)
    wholes = _encoded([lead + text for lead, text in zip(before, texts, strict=True)], tokenizer=tokenizer)
    return [
        both[len(lead) :] if both[: len(lead)] == lead else ids
        for both, lead, ids in zip(wholes, leads, alone, strict=True)
    ]


def _encoded(texts: list[str], *, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoding = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return list(encoding["input_ids"])
