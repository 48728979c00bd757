"""Texts to ids: start and end tokens as the model knows them, what is trained, nothing cut in silence."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trainer.config.errors import ConfigError, DataError
from trainer.data.templates import Rendered
from trainer.data.tokenize import PromptEncoder, TokenizedExample, load_tokenizer, tail

BOS, EOS, PAD = 0, 1, 2
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


def rendered(*examples: tuple[str, str]) -> list[Rendered]:
    return [Rendered(f"id{number}", prompt, response) for number, (prompt, response) in enumerate(examples)]


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
    # <s> a b | c d </s>: three trained tokens from the fourth on.  <s> | x </s>: two from the second on.
    encoded = encoder_of(tokenizer_of(puts_bos=True)).encode(rendered(("ab", "cd"), ("", "x")))
    assert encoded == [
        TokenizedExample([BOS, *ids_of("abcd"), EOS], ((3, 6),)),
        TokenizedExample([BOS, *ids_of("x"), EOS], ((1, 3),)),
    ]
    assert [example.num_targets for example in encoded] == [3, 2]


@pytest.mark.parametrize("puts_bos", [False, True])
@pytest.mark.parametrize("chat_template", [False, True])
def test_many_examples_are_encoded_as_each_alone_and_as_they_are_given_to_generate(
    puts_bos: bool, chat_template: bool
) -> None:
    tokenizer = tokenizer_of(puts_bos=puts_bos, chat_template=CHAT_TEMPLATE, merges=(("a", "b"),))
    encoder = encoder_of(tokenizer)
    examples = rendered(("a", "b"), ("", "x"), ("what </s>", " caf\u00e9\n"), ("ab" * 40, "abab"))
    found = encoder.encode(examples, chat_template=chat_template)
    assert found == [encoder.encode([example], chat_template=chat_template)[0] for example in examples]
    assert found == [
        tail(encoder.prompt_ids(one.prompt, chat_template=chat_template), encoder.response_ids(one.response))
        for one in examples
    ]
    assert encoder.encode([]) == []


def test_a_classified_example_is_its_whole_text_and_its_class() -> None:
    encoder = PromptEncoder(tokenizer_of(puts_bos=True, puts_eos=True), labels=("good", "bad"))
    found = encoder.encode(rendered(("a", " bad\n"), ("bc", "good")))
    assert found == [
        TokenizedExample([BOS, *ids_of("a"), EOS], label=1),
        TokenizedExample([BOS, *ids_of("bc"), EOS], label=0),
    ]


def test_a_label_that_is_no_class_is_refused_with_the_classes() -> None:
    encoder = PromptEncoder(tokenizer_of(), labels=("good", "bad"))
    with pytest.raises(DataError, match=r": found label 'Good', wanted one of classification\.labels \(good, bad\)\.$"):
        encoder.encode(rendered(("a", "bad"), ("b", "Good")))


def test_a_response_carries_the_loss_and_the_prompt_before_it_does_not() -> None:
    # 5 6 | 7 2.  Without a prompt nothing predicts the first token: 7 8 9 have two targets.  No response: none.
    assert tail([5, 6], [7, 2]) == TokenizedExample([5, 6, 7, 2], ((2, 4),))
    assert (tail([5, 6], [7, 2]).num_targets, tail([], [7, 8, 9]).num_targets) == (2, 2)
    assert (tail([5, 6], []), tail([5, 6], []).num_targets) == (TokenizedExample([5, 6]), 0)


def test_a_cut_example_keeps_what_is_trained_of_what_is_left() -> None:
    # Trained: 1 2, 5 6 7.  Six tokens: 1 2, 5.  Five: 1 2.  One: nothing that is predicted.
    example = TokenizedExample([*range(9)], ((1, 3), (5, 8)))
    assert example.truncated(6) == TokenizedExample([0, 1, 2, 3, 4, 5], ((1, 3), (5, 6)))
    assert example.truncated(5) == TokenizedExample([0, 1, 2, 3, 4], ((1, 3),))
    assert [example.truncated(length).num_targets for length in (9, 8, 7, 6, 5, 2, 1)] == [5, 5, 4, 3, 2, 1, 0]
    assert TokenizedExample([4, 5, 6], label=1).truncated(2) == TokenizedExample([4, 5], label=1)


def test_a_tokenizer_of_a_folder_pads_with_the_end_of_text_where_it_has_no_pad_token(tmp_path: Path) -> None:
    tokenizer = tokenizer_of()
    tokenizer.save_pretrained(tmp_path / "padded")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    assert load_tokenizer(tmp_path / "padded").pad_token_id == PAD
    assert load_tokenizer(tmp_path / "bare").pad_token_id == EOS


def test_a_folder_without_a_tokenizer_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.path: {tmp_path}: no tokenizer that transformers can read \("):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("labels", [(), ("good", "bad")])
def test_a_tokenizer_that_cuts_and_pads_by_itself_is_not_let(tmp_path: Path, labels: tuple[str, ...]) -> None:
    # Many encoders are published with the cut and the padding of their makers inside tokenizer.json.
    tokenizer = tokenizer_of()
    tokenizer.bos_token = None
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=6, pad_id=PAD, pad_token="<pad>")
    tokenizer.save_pretrained(tmp_path)
    encoder = PromptEncoder(load_tokenizer(tmp_path), labels=labels)
    answer = [] if labels else [*ids_of("good"), EOS]
    examples = encoder.encode(rendered(("a", "good"), ("abcdefgh", "good")))
    assert [example.input_ids for example in examples] == [ids_of("a") + answer, ids_of("abcdefgh") + answer]


def test_data_cannot_forge_an_end_of_text() -> None:
    encoder = encoder_of(tokenizer_of(puts_bos=False))
    assert EOS not in encoder.text_ids("good </s> bad")
    assert encoder.response_ids("good </s> bad").count(EOS) == 1
