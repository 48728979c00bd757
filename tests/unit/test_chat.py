"""Conversations to ids: what the assistant said is trained, exactly and with its end, in every template's words."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainer.config.errors import DataError
from trainer.data import chat
from trainer.data.chat import ChatIds, Message, Segment, chat_segments, plain_segments, read_messages, segment_ids

CHATML = (
    r"{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Q.<|im_end|>\n' }}{% endif %}"
    r"{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    r"{% for m in messages %}{% set text = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim"
    r" + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    r"{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    r"{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    r"{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    r"{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    r"{% if m.role == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
    r"{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    r"{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System\nnot supported') }}{% endif %}"
    r"{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
    r" + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN3 = (
    r"{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    r"{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set text = m.content %}"
    r"{% set thought = '' %}{% if '</think>' in text %}{% set text = text.split('</think>')[-1].lstrip('\n') %}"
    r"{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% endif %}"
    r"{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    r"{{ text + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    r"{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    r"{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
UNMARKED = (
    r"{% for m in messages %}{{ m.role | capitalize + ': ' + m.content + '\n' }}{% endfor %}"
    r"{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
THOUGHTFUL = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<|begin_of_text|>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
MARKERS = f"Assistant: ### Response:\n[/INST] <|user|> <|im_end {chat.PROBE} User:"

Tok = PreTrainedTokenizerBase
Messages = tuple[Message, ...]


def backend_of(words: pre_tokenizers.PreTokenizer, spaces: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = words
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    training = trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CHATML, LLAMA3, MISTRAL, "\n\n", MARKERS, "Paris is the capital."], training)
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
BYTE_LEVEL = backend_of(pre_tokenizers.Sequence([pre_tokenizers.Split(WORDS, "isolated"), BYTES]))


def tokenizer_of(template: str | None, *, backend: Tokenizer = BYTE_LEVEL, bos: str = "<s>") -> Tok:
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="</s>")
    fast.chat_template = template
    return fast


def rendered_ids(tokenizer: Tok, messages: Messages, *, generate: bool = False) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=generate, tokenize=False)
    return list(tokenizer.encode(text if generate else text.rstrip("\n"), add_special_tokens=False))


def chat_ids(tokenizer: Tok, messages: Messages, *, train_on: str = "all", start_ids: Sequence[int] = ()) -> ChatIds:
    segments = chat_segments(messages, tokenizer=tokenizer, train_on=train_on, where="row 1")
    return segment_ids(segments, tokenizer=tokenizer, start_ids=start_ids)


def trained_texts(tokenizer: Tok, found: ChatIds) -> list[str]:
    return [tokenizer.decode(found[0][start:end], clean_up_tokenization_spaces=False) for start, end in found[1]]


def check_prompts(tokenizer: Tok, messages: Messages, found: ChatIds) -> None:
    """What stands before each answer are the ids that generation would begin with."""
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for (start, _), index in zip(found[1], turns[-len(found[1]) :], strict=True):
        assert found[0][:start] == rendered_ids(tokenizer, messages[:index], generate=True)


def conversation(*contents: str, system: str | None = None) -> Messages:
    turns = [Message(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]
    return (*([Message("system", system)] if system else []), *turns)


def told_in_one_line(words: str) -> AbstractContextManager[object]:
    return pytest.raises(DataError, match=rf"^row 1: {re.escape(words)}.*\Z")


CASES: dict[str, tuple[str, str, Callable[[str], str]]] = {  # template, start token, an answer as it is trained
    "chatml": (CHATML, "<s>", lambda answer: f"{answer}<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", lambda answer: f"{answer.strip()}<|eot_id|>"),
    "mistral": (MISTRAL, "<s>", lambda answer: f" {answer.strip()}</s>"),
    "gemma": (GEMMA, "<bos>", lambda answer: f"{answer.strip()}<end_of_turn>"),
    "zephyr": (ZEPHYR, "<s>", lambda answer: f"{answer}</s>"),
}
ANSWERS = ("Paris. \n", f"{MARKERS} is in {MARKERS}", "User:")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("system", [f"Be brief. {MARKERS}", None])
def test_the_answers_and_the_ends_of_their_turns_are_trained_and_nothing_else(name: str, system: str | None) -> None:
    template, bos, trained = CASES[name]
    questions, rule = ("Where?\n", MARKERS, " Paris. \n"), system if name != "gemma" else None
    messages = conversation(*(text for turn in zip(questions, ANSWERS, strict=True) for text in turn), system=rule)
    tokenizer = tokenizer_of(template, bos=bos)
    ids, spans = chat_ids(tokenizer, messages)
    assert trained_texts(tokenizer, (ids, spans)) == [trained(answer) for answer in ANSWERS]
    check_prompts(tokenizer, messages, (ids, spans))
    assert ids == rendered_ids(tokenizer, messages)
    assert chat_ids(tokenizer, messages, train_on="last") == (ids, spans[-1:])
    assert chat_ids(tokenizer, messages, start_ids=ids[:1]) == (ids, spans), "the template wrote its beginning"


def test_an_answer_without_a_mark_of_its_end_is_given_the_end_of_text_token() -> None:
    tokenizer = tokenizer_of(UNMARKED)
    messages = conversation("A", "B", "Assistant: C", "Assistant: D \n")
    found = chat_ids(tokenizer, messages)
    assert trained_texts(tokenizer, found) == [" B</s>", " Assistant: D \n</s>"]
    assert tokenizer.decode(found[0]).startswith("User: A\nAssistant: B</s>\nUser: Assistant: C\nAssistant: ")
    check_prompts(tokenizer, messages, chat_ids(tokenizer, messages, train_on="last"))


@pytest.mark.parametrize("thought", ["", "Hm."])
def test_a_template_that_takes_earlier_thoughts_away_trains_the_last_turn_as_it_renders_it(thought: str) -> None:
    tokenizer = tokenizer_of(QWEN3)
    last = f"<think>\n{thought}\n</think>\n\nD" if thought else "D"
    messages = conversation("A", "<think>\nWell.\n</think>\n\nB", "C", last)
    found = chat_ids(tokenizer, messages, train_on="last")
    assert trained_texts(tokenizer, found) == [f"<think>\n{thought}\n</think>\n\nD<|im_end|>"]
    check_prompts(tokenizer, messages, found)
    with told_in_one_line("the model's chat template rewrites earlier turns, here message 2: they cannot be trained"):
        chat_ids(tokenizer, messages)


REFUSED = [
    (GEMMA, conversation("A", "B", system="S"), "refuses the conversation: System not supported. Correct"),
    (MISTRAL, (Message("user", "A"), *conversation("A", "B")), "refuses the conversation: Conversation roles must"),
    (None, conversation("A", "B"), "refuses the conversation: Cannot use chat template"),
    (THOUGHTFUL, conversation("A", "B"), "shows message 2 otherwise than it would be generated. Give the"),
    ("{{ '' }}", conversation("A", "B"), "shows message 2 otherwise than it would be generated."),
    ("{% for m in messages %}{{ m.content }}{{ m.content | length }}{% endfor %}", conversation("A", "B"), "shows"),
]


@pytest.mark.parametrize(("template", "messages", "words"), REFUSED)
def test_a_template_that_cannot_show_a_conversation_is_told(template: str, messages: Messages, words: str) -> None:
    with told_in_one_line(f"the model's chat template {words}"):
        chat_ids(tokenizer_of(template), messages, train_on="last")


def test_without_a_template_our_own_words_are_cut_where_generation_cuts_whatever_is_trained() -> None:
    tokenizer = tokenizer_of(None)
    messages = (*conversation("A", "B", system="S"), Message("tool", "T"), *conversation("C", "D"))
    last = plain_segments(messages, train_on="last")
    assert last == [
        Segment("S\n\nUser: A\nAssistant:", trained=False),
        Segment(" B", trained=False, ends_itself=False),
        Segment("\nTool: T\nUser: C\nAssistant:", trained=False),
        Segment(" D", trained=True, ends_itself=False),
    ]
    ids, spans = segment_ids(plain_segments(messages, train_on="all"), tokenizer=tokenizer, start_ids=[0])
    assert tokenizer.decode(ids) == "<s>S\n\nUser: A\nAssistant: B</s>\nTool: T\nUser: C\nAssistant: D</s>"
    assert trained_texts(tokenizer, (ids, spans)) == [" B</s>", " D</s>"]
    assert segment_ids(last, tokenizer=tokenizer, start_ids=[0]) == (ids, spans[-1:])
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"^model\.path: its tokenizer has no end-of-text token"):
        segment_ids(last, tokenizer=tokenizer)


PREPEND = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
SPACING = [backend_of(pre_tokenizers.Metaspace(prepend_scheme=scheme)) for scheme in ("always", "first")]
SPACING += [backend_of(pre_tokenizers.Sequence([pre_tokenizers.Split("\u2581", "merged_with_next"), BYTES]), PREPEND)]


@pytest.mark.parametrize("template", [MISTRAL, ZEPHYR])
@pytest.mark.parametrize("backend", SPACING)
def test_a_space_that_the_tokenizer_puts_before_texts_is_not_put_inside(template: str, backend: Tokenizer) -> None:
    tokenizer = tokenizer_of(template, backend=backend)
    chats = [conversation("A", "B", "C", "D"), conversation("E", "F")]
    segments = [chat_segments(messages, tokenizer=tokenizer, train_on="all", where="") for messages in chats]
    for messages, found in zip(chats, chat.batch_ids(segments, tokenizer=tokenizer), strict=True):
        assert found[0] == rendered_ids(tokenizer, messages)
        check_prompts(tokenizer, messages, found)
    assert chat.batch_ids([], tokenizer=tokenizer) == []
    plain, _ = segment_ids(plain_segments(chats[0], train_on="all"), tokenizer=tokenizer)
    assert plain == tokenizer.encode("User: A\nAssistant: B</s>\nUser: C\nAssistant: D</s>", add_special_tokens=False)


@pytest.mark.parametrize("backend", [BYTE_LEVEL, *SPACING])
def test_the_text_is_cut_where_an_answer_begins_even_inside_a_word(backend: Tokenizer) -> None:
    tokenizer = tokenizer_of("{% for m in messages %}{{ m.content }}{% endfor %}", backend=backend)
    messages = conversation("Par", "is")
    assert len(rendered_ids(tokenizer, messages)) == 1
    before, answer = tokenizer(["Par", "is"], add_special_tokens=False)["input_ids"]
    ids = [*before, *answer, tokenizer.eos_token_id]
    assert chat_ids(tokenizer, messages) == (ids, [(len(before), len(ids))])


def test_a_content_that_holds_a_control_token_is_refused() -> None:
    tokenizer = tokenizer_of(None)
    tokenizer.add_tokens(["<think>"])
    pattern = chat.special_token_pattern(tokenizer)
    chat.refuse_special_tokens(conversation(f"<think> {MARKERS}", "B"), pattern=pattern, where="row 1")
    with told_in_one_line("message 2 holds '<|im_end|>', a control token of the model, wanted plain words."):
        chat.refuse_special_tokens(conversation("A", "B<|im_end|>"), pattern=pattern, where="row 1")
    without = chat.special_token_pattern(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())))
    chat.refuse_special_tokens(conversation("A", "</s>"), pattern=without, where="row 1")


HI, YO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
RULE = {"role": "system", "content": "S"}
SHAREGPT = [{"from": "human", "value": "Hi", "role": None}, {"from": "gpt", "value": "Yo"}]
PARTS = {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}


@pytest.mark.parametrize("value", [[HI, YO], json.dumps([HI, YO]), SHAREGPT, [PARTS, YO]])
def test_messages_are_read_in_every_spelling(value: Any) -> None:
    assert read_messages(value, where="row 1") == conversation("Hi", "Yo")
    roles = ("system", "user", "assistant", "tool", "assistant")
    found = read_messages([{"from": role, "value": "A"} for role in roles], where="row 1")
    assert found == tuple(Message(role, "A") for role in roles)


MALFORMED: list[tuple[Any, str]] = [
    (None, "found null, wanted a list of messages. Name the column that holds it."),
    ("Hello", "found a text that cannot be read as JSON (Expecting value: line 1 column 1 (char 0)), wanted a list"),
    ('[{"role": "user", "role": "user"}]', "found a text that cannot be read as JSON (the key 'role' stands twice"),
    ([], "found an empty list, wanted a list of messages. Remove the row."),
    ([HI, "Yo"], "message 2: found 'Yo', wanted an object with role and content."),
    ([{**HI, "role": "human"}, YO], "message 1: found role 'human', wanted one of system, user, assistant, tool."),
    ([HI, {"content": "Yo"}], "message 2: found role None, wanted one of"),
    ([{"from": "bot", "value": "Hi"}, YO], "message 1: found from 'bot', wanted one of system, user, assistant, tool,"),
    ([HI, {"role": "assistant"}], "message 2: found nothing in content, wanted a text."),
    ([HI, {**YO, "content": 4}], "message 2: found 4 in content, wanted a text."),
    ([HI, {**YO, "content": " \n"}], "message 2: found a blank content, wanted words."),
    ([HI, {"from": "gpt", "value": []}], "message 2: found a blank value, wanted words."),
    ([{**HI, "content": [{"type": "image"}]}, YO], "message 1: found a part of type 'image' in content, wanted text"),
    ([HI, {**YO, "tool_calls": [1]}], "message 2: found tool_calls, wanted all words in content."),
    ([HI, RULE, YO], "message 2 is by the system, wanted it first."),
    ([RULE, HI], "no message by the assistant, wanted an answer to learn from."),
    ([YO, HI, YO], "message 1 is by the assistant and answers nothing, wanted a message by user or tool before it."),
    ([RULE, YO], "message 2 is by the assistant and answers nothing"),
    ([HI, YO, HI], "the last message is by user, wanted the assistant: nothing is learnt from what follows its last"),
    ([HI, YO, YO], "messages 2 and 3 are both by the assistant, wanted a question between them."),
]


@pytest.mark.parametrize(("value", "words"), MALFORMED)
def test_a_malformed_conversation_is_told(value: Any, words: str) -> None:
    with told_in_one_line(words):
        read_messages(value, where="row 1")


contents = st.text(min_size=1).filter(str.strip) | st.sampled_from([MARKERS, "\nB", " C \n", "[/INST]", "<|im_end"])


@pytest.mark.parametrize("name", ["chatml", "llama3"])
@settings(deadline=None, derandomize=True, max_examples=100, database=None)
@given(turns=st.lists(st.tuples(contents, contents), min_size=1, max_size=4), system=st.none() | contents)
def test_the_spans_of_any_conversation_are_its_answers(name: str, turns: list[tuple[str, str]], system: str) -> None:
    template, bos, trained = CASES[name]
    tokenizer = tokenizer_of(template, bos=bos)
    messages = conversation(*(content for turn in turns for content in turn), system=system)
    found = chat_ids(tokenizer, messages)
    assert trained_texts(tokenizer, found) == [trained(answer) for _, answer in turns]
    if name == "llama3" or not any(answer[0].isspace() for _, answer in turns):
        check_prompts(tokenizer, messages, found)
