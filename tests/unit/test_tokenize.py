"""Texts to ids: start and end tokens as the model knows them, lengths kept, nothing cut in silence."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trainer.config.errors import DataError
from trainer.data.templates import Rendered
from trainer.data.tokenize import PromptEncoder, TokenizedExample, tokenize_task

BOS, EOS, PAD = 0, 1, 2
LONG = 100
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tokenizer_of(
    *,
    puts_bos: bool = False,
    puts_eos: bool = False,
    chat_template: str | None = None,
    merges: tuple[tuple[str, str], ...] = (),
) -> PreTrainedTokenizerFast:
    """One id a byte, after <s>, </s> and <pad>; merged pairs of characters come last."""
    words = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    around = f"{'<s> ' if puts_bos else ''}$A{' </s>' if puts_eos else ''}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = chat_template
    return fast


def encoder_of(tokenizer: PreTrainedTokenizerFast) -> PromptEncoder:
    return PromptEncoder(tokenizer)


def ids_of(text: str) -> list[int]:
    """Ids of ASCII text without white space: the alphabet starts at "!", in the order of ASCII."""
    return [3 + ord(character) - ord("!") for character in text]


def tokenized(*examples: tuple[str, str], limit: int, on_overlength: str = "error") -> list[TokenizedExample]:
    rendered = [Rendered(f"id{number}", prompt, response) for number, (prompt, response) in enumerate(examples)]
    task = tokenize_task(
        "quiz",
        rendered,
        encoder=encoder_of(tokenizer_of(puts_bos=True)),
        chat_template=False,
        sequence_length_tokens=limit,
        on_overlength=on_overlength,
    )
    return [task[index] for index in range(len(task))]


def test_a_prompt_begins_with_the_start_token_where_the_tokenizer_itself_puts_one() -> None:
    encoder = encoder_of(tokenizer_of(puts_bos=True))
    assert encoder.start_ids == [BOS]
    assert encoder.prompt_ids("ab") == [BOS, *ids_of("ab")]
    assert encoder.prompt_ids("") == [BOS]


def test_a_start_token_that_the_tokenizer_only_knows_is_not_put() -> None:
    tokenizer = tokenizer_of(puts_bos=False)
    assert tokenizer.bos_token_id == BOS
    encoder = encoder_of(tokenizer)
    assert encoder.start_ids == []
    assert encoder.prompt_ids("ab") == ids_of("ab")


def test_an_end_token_that_the_tokenizer_puts_by_itself_stands_after_the_response_only() -> None:
    encoder = encoder_of(tokenizer_of(puts_bos=True, puts_eos=True))
    assert encoder.prompt_ids("ab") == [BOS, *ids_of("ab")]
    assert encoder.response_ids("c") == [*ids_of("c"), EOS]
    assert encoder.text_ids("c") == ids_of("c")


def test_prompt_and_response_are_cut_where_they_meet_not_where_the_whole_text_would_be() -> None:
    # "ab" is one token in a text, but generation after the prompt "a" can only go on with "b".
    tokenizer = tokenizer_of(merges=(("a", "b"),))
    assert tokenizer.encode("ab") == [3 + 256]
    encoder = encoder_of(tokenizer)
    assert [*encoder.prompt_ids("a"), *encoder.response_ids("b")] == [*ids_of("ab"), EOS]


def test_answers_are_decoded_without_special_tokens_and_trimmed() -> None:
    encoder = encoder_of(tokenizer_of(puts_bos=True))
    assert encoder.decode([*encoder.text_ids("  caf\u00e9 \n"), EOS, PAD, PAD]) == "caf\u00e9"
    assert encoder.decode([EOS, PAD]) == ""


def test_the_pad_token_is_the_tokenizers() -> None:
    assert encoder_of(tokenizer_of()).pad_token_id == PAD


def test_a_tokenizer_without_end_token_is_refused() -> None:
    tokenizer = tokenizer_of()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"^model\.path: its tokenizer has no end-of-text token"):
        encoder_of(tokenizer)


def test_a_prompt_is_one_user_turn_of_the_chat_template_with_one_start_token() -> None:
    encoder = encoder_of(tokenizer_of(puts_bos=True, chat_template=CHAT_TEMPLATE))
    wanted = encoder.tokenizer.encode("[user] Hi\n[assistant]", add_special_tokens=False)
    assert encoder.prompt_ids("Hi", chat_template=True) == [BOS, *wanted]
    assert encoder.response_ids("Yo") == [*ids_of("Yo"), EOS]


def test_a_chat_template_is_left_alone_unless_it_was_asked_for() -> None:
    encoder = encoder_of(tokenizer_of(chat_template=CHAT_TEMPLATE))
    assert encoder.prompt_ids("Hi") == ids_of("Hi")


def test_a_missing_chat_template_is_refused_with_the_key_to_change() -> None:
    with pytest.raises(DataError) as caught:
        encoder_of(tokenizer_of()).prompt_ids("Hi", chat_template=True)
    wanted = "chat_template: true, but the model's tokenizer has no chat template. Set it to false."
    assert str(caught.value) == wanted


def test_an_example_joins_prompt_and_response_and_trains_the_end_of_text() -> None:
    # <s> a b | c d </s>: three supervised tokens.
    assert tokenized(("ab", "cd"), ("", "x"), limit=LONG) == [
        TokenizedExample([BOS, *ids_of("abcd"), EOS], 3),
        TokenizedExample([BOS, *ids_of("x"), EOS], 2),
    ]


def test_an_example_of_exactly_the_length_fits() -> None:
    # <s> a b c d </s> are 6 tokens.
    assert [len(example.input_ids) for example in tokenized(("ab", "cd"), limit=6)] == [6]


def test_an_example_one_token_too_long_is_an_error_with_its_id_and_both_lengths() -> None:
    with pytest.raises(DataError) as caught:
        tokenized(("a", "b"), ("ab", "cd"), limit=5)
    assert str(caught.value) == (
        "data.tasks.quiz: example id1 has 6 tokens, more than data.sequence_length_tokens 5. "
        "Raise it, or set data.on_overlength=drop."
    )


def test_over_long_examples_are_dropped_whole_and_counted_where_that_was_asked() -> None:
    rendered = [Rendered("a", "a", "b"), Rendered("b", "ab", "cd"), Rendered("c", "", "d"), Rendered("d", "abc", "de")]
    task = tokenize_task(
        "quiz",
        rendered,
        encoder=encoder_of(tokenizer_of(puts_bos=True)),
        chat_template=False,
        sequence_length_tokens=5,
        on_overlength="drop",
    )
    assert (task.name, len(task), task.num_dropped_overlength) == ("quiz", 2, 2)
    assert [task[index].input_ids for index in range(2)] == [[BOS, *ids_of("ab"), EOS], [BOS, *ids_of("d"), EOS]]


def test_a_task_whose_examples_were_all_dropped_is_refused() -> None:
    with pytest.raises(DataError, match=r"^data\.tasks\.quiz: empty data set: all 2 examples are over-long"):
        tokenized(("ab", "cd"), ("ab", "cd"), limit=5, on_overlength="drop")


def test_data_cannot_forge_an_end_of_text() -> None:
    encoder = encoder_of(tokenizer_of(puts_bos=False))
    assert EOS not in encoder.text_ids("good </s> bad")
    assert encoder.response_ids("good </s> bad").count(EOS) == 1
