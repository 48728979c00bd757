"""How far predictions have moved: KL worked by hand, a lower bound of the whole one, and a known way to get it wrong.

Shapes: N tokens, V vocabulary, K kept tokens.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.stand_ins import build
from tests.unit.test_score import TableEngine, example_of, scored, table, task_of
from tests.unit.test_score_ranks import ModelEngine, encoder, texts  # noqa: F401  # a fixture
from trainer.config.errors import DataError
from trainer.data.collate import Batch
from trainer.data.tokenize import PromptEncoder, TokenizedExample
from trainer.evaluation import score
from trainer.evaluation.drift import (
    NUM_KEPT,
    KeptTokens,
    divergence,
    keep_tokens,
    kept_examples,
    read_kept,
    write_kept,
)
from trainer.evaluation.examples import EvaluationData, EvaluationExample
from trainer.evaluation.measure import Measurement, run_tasks

ROUNDING = 1e-5
"""float32 log-probabilities of size 10, summed over at most 64 tokens of probability 1 together."""


def random_logits(seed: int, *, num_tokens: int, vocabulary: int, scale: float) -> Tensor:
    return torch.randn(num_tokens, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def whole_kl(base_NV: Tensor, now_NV: Tensor) -> float:
    """sum_N sum_V p (log p - log q) in double precision."""
    log_p_NV, log_q_NV = base_NV.double().log_softmax(-1), now_NV.double().log_softmax(-1)
    return float((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum())


@pytest.mark.parametrize("vocabulary", [2, NUM_KEPT, NUM_KEPT + 1, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_logits_have_not_moved_at_all(vocabulary: int, dtype: torch.dtype) -> None:
    logits_NV = random_logits(0, num_tokens=7, vocabulary=vocabulary, scale=5.0).to(dtype)
    found = divergence(logits_NV, keep_tokens(logits_NV))
    assert (found.kl_nats, found.num_agreeing_tokens) == (0.0, 7)


@pytest.mark.parametrize("vocabulary", [4, 5000])
def test_of_several_most_likely_tokens_any_agrees(vocabulary: int) -> None:
    # Logits in bf16 have few values: ties are common, and which of them comes first depends on the operator.
    flat_NV = torch.zeros(6, vocabulary)
    assert divergence(flat_NV, keep_tokens(flat_NV)).num_agreeing_tokens == 6
    one_NV = flat_NV.clone()
    one_NV[:, 0] = 1.0
    assert divergence(one_NV, keep_tokens(one_NV.flip(-1))).num_agreeing_tokens == 0


def test_a_divergence_worked_by_hand() -> None:
    # Base 1/2, 1/4, 1/4; now 1/4, 1/2, 1/4: 1/2 ln 2 - 1/4 ln 2 = 1/4 ln 2, and another most likely token.
    # Base 3/4, 1/8, 1/8; now 1/2, 1/4, 1/4: 3/4 ln(3/2) - 1/4 ln 2, and the same one.
    base_NV = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125]]).log()
    now_NV = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]).log()
    found = divergence(now_NV, keep_tokens(base_NV))
    wanted = 0.25 * math.log(2) + 0.75 * math.log(1.5) - 0.25 * math.log(2)
    assert found.kl_nats == pytest.approx(wanted, abs=1e-6)
    assert found.num_agreeing_tokens == 1
    # The other way round is another number: 1/4 ln(1/2) + 1/2 ln 2 = 1/4 ln 2, and 1/2 ln(2/3) + 1/2 ln 2.
    back = divergence(base_NV, keep_tokens(now_NV)).kl_nats
    assert back == pytest.approx(0.25 * math.log(2) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-6)
    assert abs(back - found.kl_nats) > 0.01


def test_what_was_not_kept_is_one_outcome() -> None:
    # 64 tokens of 1/128, and 128 of 1/256 as one outcome of 1/2.  Now 1/256 each and 3/4:
    # 64/128 ln 2 + 1/2 ln(2/3).
    base_V, now_V = torch.full((192,), 1 / 256), torch.full((192,), 0.75 / 128)
    base_V[:64], now_V[:64] = 1 / 128, 1 / 256
    found = divergence(now_V.log()[None], keep_tokens(base_V.log()[None]))
    assert found.kl_nats == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=ROUNDING)


def test_the_most_likely_tokens_are_kept_in_falling_order_and_in_few_bytes() -> None:
    logits_NV = random_logits(1, num_tokens=3, vocabulary=500, scale=3.0)
    kept = keep_tokens(logits_NV)
    assert (kept.ids_NK.shape, kept.ids_NK.dtype, kept.logprobs_NK.dtype) == ((3, NUM_KEPT), np.int32, np.float32)
    assert (np.diff(kept.logprobs_NK, axis=1) <= 0).all()
    assert kept.ids_NK[:, 0].tolist() == logits_NV.argmax(-1).tolist()
    assert keep_tokens(logits_NV[:, :5]).ids_NK.shape == (3, 5)


seeds = st.integers(0, 2**32 - 1)
scales = st.floats(0.1, 8.0)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, NUM_KEPT), scales, scales)
def test_of_a_small_vocabulary_it_is_the_whole_divergence(
    seed: int, vocabulary: int, first: float, then: float
) -> None:
    base_NV = random_logits(seed, num_tokens=3, vocabulary=vocabulary, scale=first)
    now_NV = random_logits(seed + 1, num_tokens=3, vocabulary=vocabulary, scale=then)
    found = divergence(now_NV, keep_tokens(base_NV)).kl_nats
    assert found == pytest.approx(whole_kl(base_NV, now_NV), rel=ROUNDING, abs=ROUNDING)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(NUM_KEPT + 1, 1000), scales, scales)
def test_of_a_large_vocabulary_it_is_never_above_the_whole_divergence(
    seed: int, vocabulary: int, first: float, then: float
) -> None:
    base_NV = random_logits(seed, num_tokens=3, vocabulary=vocabulary, scale=first)
    now_NV = random_logits(seed + 1, num_tokens=3, vocabulary=vocabulary, scale=then)
    found = divergence(now_NV, keep_tokens(base_NV)).kl_nats
    whole = whole_kl(base_NV, now_NV)
    assert 0 <= found <= whole * (1 + ROUNDING) + ROUNDING


def text(number: int, num_tokens: int) -> EvaluationExample:
    return EvaluationExample(f"id{number}", "p", "t", ("t",), (1,), ((2,) * num_tokens,))


@pytest.mark.parametrize(("max_tokens", "num_kept"), [(0, 0), (2, 0), (3, 1), (7, 1), (8, 2), (9, 3), (1000, 3)])
def test_the_first_texts_are_kept_whole_up_to_so_many_tokens(max_tokens: int, num_kept: int) -> None:
    # 3, 5 and 1 tokens: the third would fit beside the first, but a prefix is the same whatever comes after it.
    examples = [text(0, 3), text(1, 5), text(2, 1)]
    assert kept_examples(examples, max_tokens=max_tokens) == {f"id{number}" for number in range(num_kept)}


def some_kept() -> dict[str, KeptTokens]:
    lengths = {"b": 3, "a": 1, "caf\u00e9": 5}
    return {name: keep_tokens(random_logits(n, num_tokens=n, vocabulary=100, scale=2.0)) for name, n in lengths.items()}


def test_what_was_kept_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "prose.npz"
    write_kept(path, some_kept())
    found = read_kept(path)
    assert set(found) == set(some_kept())
    for name, kept in some_kept().items():
        assert np.array_equal(found[name].ids_NK, kept.ids_NK)
        assert np.array_equal(found[name].logprobs_NK, kept.logprobs_NK)
    assert [entry.name for entry in path.parent.iterdir()] == ["prose.npz"]
    assert read_kept(tmp_path / "nothing.npz") == {}


def test_a_damaged_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "prose.npz"
    write_kept(path, some_kept())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"logprobs.npy") + 300] ^= 1
    for content in (b"", b"PK", whole[:100], whole[: len(whole) // 2], whole[:-1], bytes(flipped), b"not a file"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"prose\.npz: damaged") as caught:
            read_kept(path)
        assert "\n" not in str(caught.value)


def measurement_of(words: PromptEncoder, *, drift_tokens: int, examples: list[EvaluationExample]) -> Measurement:
    data = EvaluationData(examples, 0)
    return Measurement([task_of("text")], [data], words, examples_per_batch=4, drift_tokens=drift_tokens)


def tiny_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model: Any = build("llama", vocab_size=64, pad_token_id=0, bos_token_id=None, eos_token_id=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # large enough for clear preferences
    return model.eval()


def test_a_model_is_compared_with_its_base_on_the_tokens_of_the_texts_alone(encoder: PromptEncoder) -> None:  # noqa: F811
    base, now = tiny_llama(0), tiny_llama(1)
    examples = texts(encoder, 9)
    measurement = measurement_of(encoder, drift_tokens=20, examples=examples)

    def measured(model: LlamaForCausalLM, **drift: Any) -> Any:
        engine: Any = ModelEngine(model)
        return run_tasks(engine, measurement, check_stop=lambda: None, **drift)

    first = measured(base, keep=True)
    wanted = kept_examples(examples, max_tokens=20)
    assert 1 < len(wanted) < 9
    assert set(first.kept["n"]) == wanted
    assert all(record.kl_nats is None for record in first.records["n"])
    again, moved = measured(base, base=first.kept).records["n"], measured(now, base=first.kept).records["n"]
    for example, same, other in zip(examples, again, moved, strict=True):
        if example.example_id not in wanted:
            assert (same.kl_nats, other.kl_nats, other.num_agreeing_tokens) == (None, None, None)
            continue
        num_tokens = len(example.candidate_ids[0])
        assert (same.kl_nats, same.num_agreeing_tokens) == (0.0, num_tokens)
        # One text at a time, without padding: the logits at the end of the prompt speak of its first token.
        ids = torch.tensor([[*example.prompt_ids, *example.candidate_ids[0]]])
        start = len(example.prompt_ids) - 1
        with torch.no_grad():
            base_NV, now_NV = (model(input_ids=ids).logits[0, start:-1] for model in (base, now))
        assert other.kl_nats == pytest.approx(whole_kl(base_NV, now_NV), rel=1e-4)
        assert other.num_agreeing_tokens == int((base_NV.argmax(-1) == now_NV.argmax(-1)).sum())


def nats_of_a_known_text() -> tuple[float, float]:
    """Nats and tokens of a text whose odds are known: p -> x 0.5, x -> y 0.5 / 63, y -> y 0.1."""
    (record,) = scored(TableEngine(table()), task_of("text"), example_of("pp", target="xyy", candidates=["xyy"]))
    return record.value, record.weight


RIGHT = (pytest.approx(math.log(2) + math.log(126) + math.log(10), abs=1e-5), 3.0)


def unshifted_collate(right: Callable[..., Batch]) -> Callable[..., Batch]:
    """Logits at t held against token t, which the model has been told, instead of t + 1."""

    def collate(rows: Any, **options: Any) -> Batch:
        batch = right(rows, **options)
        batch.targets_BT[:, 1:] = batch.targets_BT[:, :-1].clone()
        batch.targets_BT[:, 0] = -100
        return batch

    return collate


def unshifted_nll(right: Callable[..., Any]) -> Callable[..., Any]:
    """Logits at t + 1 asked for token t + 1."""
    return lambda logits_BTV, targets_BT: right(logits_BTV.roll(-1, dims=1), targets_BT)


def early_tail(right: Callable[..., TokenizedExample]) -> Callable[..., TokenizedExample]:
    """The last token of the prompt counted as one of the text."""

    def tail(prompt_ids: Any, response_ids: Any) -> TokenizedExample:
        found = right(prompt_ids, response_ids)
        return TokenizedExample(found.input_ids, tuple((first - 1, last) for first, last in found.spans))

    return tail


def late_tail(right: Callable[..., TokenizedExample]) -> Callable[..., TokenizedExample]:
    """The first token of the text taken for one of the prompt."""
    return lambda prompt_ids, response_ids: right([*prompt_ids, *response_ids[:1]], response_ids[1:])


def test_each_token_is_held_against_the_odds_before_it() -> None:
    assert nats_of_a_known_text() == RIGHT


@pytest.mark.parametrize(
    ("name", "fault"),
    [("collate", unshifted_collate), ("target_nll", unshifted_nll), ("tail", early_tail), ("tail", late_tail)],
)
def test_odds_of_another_place_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[..., Any]
) -> None:
    # The first fault is that of a public benchmark of adapters, whose drift was measured on unshifted targets.
    rights = {"collate": score.collate, "target_nll": score.target_nll, "tail": score.tail}
    monkeypatch.setattr(score, name, fault(rights[name]))
    assert nats_of_a_known_text() != RIGHT
