"""Prompts computed once for all their candidates: the same nats as one sequence at a time, on any number of ranks.

Shapes: B rows, T tokens.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, DynamicCache, PreTrainedModel

from tests.scoring import (
    Ids,
    ModelEngine,
    SimulatedWorld,
    V,
    Waiting,
    all_alone,
    example_of,
    largest_difference,
    scored,
    tiny,
)
from trainer.engine.forward import MODEL_TYPES, CachedRows, cache_obstacle
from trainer.evaluation.examples import EvaluationExample
from trainer.evaluation.likelihood import Likelihood
from trainer.evaluation.shared_rows import SHORTEST_HEADER, batches_of_rows, has_header, shared_header

ROUNDING = 1e-5
"""Relative, fp32: sums of at most thirty terms of size 4 to 20."""


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES))
def test_each_architecture_gives_the_nats_of_each_sequence_alone(model_type: str, attention: str) -> None:
    model = tiny(model_type, attention)
    assert cache_obstacle(model.config, attention=attention) is None
    engine = ModelEngine(model, attention)
    assert largest_difference(scored(engine), all_alone(model)) < ROUNDING
    assert {kind for kind, _ in engine.passes} == {"header", "rows after header", "rows"}


def test_without_a_cache_the_nats_are_the_same_and_each_candidate_is_computed_whole() -> None:
    model = tiny("llama")
    engine = ModelEngine(model, cache_obstacle="for the test")
    assert largest_difference(scored(engine), all_alone(model)) < ROUNDING
    assert {kind for kind, _ in engine.passes} == {"whole"}
    # 3 + 3 + 3 + 2 + 2 + 2 + 1 candidates, of 16 to 26 tokens but for two texts of 5 and 2: no more than 2 x 26.
    shapes = [shape for _, shape in engine.passes]
    assert shapes == sorted(shapes, key=lambda shape: -shape[1])
    assert all(rows * width <= 52 for rows, width in shapes)
    assert sum(rows for rows, _ in shapes) == 16


def ids(smallest: int, largest: int) -> st.SearchStrategy[Ids]:
    return st.lists(st.integers(0, V - 1), min_size=smallest, max_size=largest).map(tuple)


@st.composite
def tasks(draw: st.DrawFn) -> list[EvaluationExample]:
    """Prompts, some behind one header, and candidates; ids of padding among them."""
    header = draw(st.one_of(st.just(()), ids(1, 2 * SHORTEST_HEADER)))
    examples = []
    for _ in range(draw(st.integers(1, 6))):
        prompt = (*(header if draw(st.booleans()) else ()), *draw(ids(0, 9)))
        fewest = 1 if prompt else 2
        candidates = draw(st.lists(ids(fewest, 6), min_size=1, max_size=5))
        if draw(st.booleans()):
            candidates.append(candidates[0])
        examples.append(example_of(prompt, *candidates))
    return examples


@settings(max_examples=40, deadline=None)
@given(
    task=tasks(),
    examples_per_batch=st.integers(1, 5),
    model_type=st.sampled_from(["llama", "qwen3", "gpt2", "opt"]),
    seed=st.integers(0, 3),
)
def test_any_prompts_and_candidates_give_the_nats_of_each_sequence_alone(
    task: list[EvaluationExample], examples_per_batch: int, model_type: str, seed: int
) -> None:
    model = tiny(model_type, seed=seed)
    found = scored(ModelEngine(model), task, examples_per_batch=examples_per_batch)
    assert largest_difference(found, all_alone(model, task)) < ROUNDING


def see_each_other(rows: CachedRows, _: DynamicCache | None) -> CachedRows:
    return rows if rows.segments_BT is None else replace(rows, segments_BT=rows.segments_BT.clamp(max=0))


def one_place_further(rows: CachedRows, _: DynamicCache | None) -> CachedRows:
    if rows.segments_BT is None:
        return rows
    return replace(rows, position_ids_BT=rows.position_ids_BT + (rows.segments_BT > 0))


def header_of_another(rows: CachedRows, _: DynamicCache | None) -> CachedRows:
    return replace(rows, input_ids_BT=rows.input_ids_BT.flip(1)) if rows.segments_BT is None else rows


def forgotten_header(rows: CachedRows, cache: DynamicCache | None) -> CachedRows:
    if cache is not None and rows.segments_BT is not None:
        cache.crop(-1)
    return rows


def seen_padding(rows: CachedRows, _: DynamicCache | None) -> CachedRows:
    return rows if rows.segments_BT is None else replace(rows, segments_BT=rows.segments_BT.clamp(min=0))


@pytest.mark.parametrize(
    "fault", [see_each_other, one_place_further, header_of_another, forgotten_header, seen_padding]
)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_a_planted_fault_shows(model_type: str, fault: Callable[..., CachedRows]) -> None:
    model = tiny(model_type)
    found = scored(ModelEngine(model, change=fault))
    assert largest_difference(found, all_alone(model)) > 100 * ROUNDING


def test_a_prompt_is_computed_once_for_all_candidates_and_a_header_once_for_all_prompts() -> None:
    # The header: 16. After it 3 + 1 + 2 + 4 of prompts and (0 + 0 + 0) + (3 + 0 + 1) + (2 + 2 + 1) + 5 of candidates.
    # Without it 16 + 20 + 0 of prompts and (1 + 1) + (2 + 2) + (4 + 1) of candidates.
    engine = ModelEngine(tiny("llama"))
    scored(engine, examples_per_batch=64)
    assert engine.num_tokens == 16 + (10 + 14) + (36 + 11)
    assert engine.passes == [("header", (1, 16)), ("rows after header", (4, 9)), ("rows", (3, 24))]


def test_logits_are_made_only_where_one_is_read() -> None:
    asked: list[int] = []

    def note(rows: CachedRows, _: DynamicCache | None) -> CachedRows:
        asked.append(rows.num_logits)
        return rows

    # Two candidates of one token: only the last of the prompt's 20. One of three: two more.
    scored(ModelEngine(tiny("llama"), change=note), [example_of(range(20), (50,), (51,))])
    scored(ModelEngine(tiny("llama"), change=note), [example_of(range(20), (50, 51, 52), (53,))])
    assert asked == [1, 3]


def test_a_header_is_what_saves_most_though_one_prompt_begins_otherwise() -> None:
    first, second = tuple(range(20)), tuple(range(20, 30))
    prompts = [(*first, *second, 50), (*first, *second, 51), (*first, *second, 52), (*first, 53), (54, 55)]
    examples = [example_of(prompt, (1,)) for prompt in prompts]
    # 30 tokens for three prompts save 2 x 30; 20 for four save 3 x 20: the longer wins.
    assert shared_header(examples) == (*first, *second)
    assert shared_header([*examples, examples[3]]) == first  # 4 x 20
    assert shared_header([example_of((*first[:10], number), (1,)) for number in range(5)]) == ()  # too short
    assert shared_header(examples[:1]) == ()
    assert shared_header([example_of(first, (1,))] * 3) == first[:-1]  # a prompt keeps a token of its own
    assert has_header(prompts[0], first)
    assert not has_header(first, first)


@settings(max_examples=60, deadline=None)
@given(task=tasks(), examples_per_batch=st.integers(1, 5))
def test_batches_hold_every_candidate_once_and_stay_within_their_bound(
    task: list[EvaluationExample], examples_per_batch: int
) -> None:
    longest = max(len(one.prompt_ids) + len(ids) for one in task for ids in one.candidate_ids)
    _, batches = batches_of_rows(task, examples_per_batch=examples_per_batch)
    keys = [(row.example, candidate) for batch in batches for row in batch for candidate in row.candidates]
    assert sorted(keys) == [(n, c) for n, one in enumerate(task) for c in range(len(one.candidate_ids))]
    for batch in batches:
        width = max(row.num_tokens for row in batch)
        seen = width + batch[0].num_header_tokens
        assert len(batch) * seen * max(width, longest) <= examples_per_batch * longest**2
        assert len({row.num_header_tokens for row in batch}) == 1


def test_many_candidates_are_split_over_rows() -> None:
    # L = 4 + 6. Two examples a batch: a row alone may have T^2 <= 2 x 10^2, so T = 14: the prompt and two candidates of
    # 5 tokens that are fed.
    candidates = [(50, 51, 52, 53, 54, number) for number in range(7)]
    _, batches = batches_of_rows([example_of((1, 2, 3, 4), *candidates)], examples_per_batch=2)
    assert [row.candidates for batch in batches for row in batch] == [(0, 1), (2, 3), (4, 5), (6,)]


def simulated_ranks(model: PreTrainedModel, *, size: int) -> Iterator[tuple[ModelEngine, list[list[Likelihood]]]]:
    """Each rank once until it waits for the others, then each once more with the parts of all."""
    parts: dict[int, Any] = {}
    for rank in range(size - 1):
        with pytest.raises(Waiting):
            scored(ModelEngine(model, world=SimulatedWorld(rank, size, parts)))
    scored(ModelEngine(model, world=SimulatedWorld(size - 1, size, parts)))
    for rank in range(size):
        engine = ModelEngine(model, world=SimulatedWorld(rank, size, parts))
        yield engine, scored(engine)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_several_ranks_give_the_nats_of_one_bit_for_bit_in_as_many_passes_each(size: int) -> None:
    one = ModelEngine(tiny("llama"))
    wanted = scored(one)
    num_batches = len(one.passes) - 1  # but for the header's
    assert num_batches > 2
    for engine, found in simulated_ranks(tiny("llama"), size=size):
        assert found == wanted
        assert engine.passes[0] == ("header", (1, SHORTEST_HEADER))
        assert len(engine.passes) - 1 == -(-num_batches // size)
        assert set(engine.passes) <= set(one.passes)


def test_whether_to_stop_is_asked_before_each_batch() -> None:
    asked: list[int] = []
    engine = ModelEngine(tiny("llama"))
    scored(engine, check_stop=lambda: asked.append(1))
    assert len(asked) == len(engine.passes) - 1

    def stop_at_second() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt

    asked.clear()
    engine = ModelEngine(tiny("llama"))
    with pytest.raises(KeyboardInterrupt):
        scored(engine, check_stop=stop_at_second)
    assert len(engine.passes) == 2


def test_scoring_leaves_no_trace_on_the_model() -> None:
    model = tiny("llama")
    config, weights = copy.deepcopy(model.config.to_dict()), copy.deepcopy(model.state_dict())
    generation = copy.deepcopy(model.generation_config.to_dict())
    scored(ModelEngine(model))
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_candidates_are_no_pass() -> None:
    engine = ModelEngine(tiny("llama"))
    assert scored(engine, [example_of((1, 2)), example_of((3,))]) == [[], []]
    assert engine.passes == []


@pytest.mark.parametrize(
    ("model_type", "attention", "fields", "wanted"),
    [
        ("bloom", "sdpa", {}, "bloom"),
        ("bert", "sdpa", {}, "bert"),
        ("llama", "flash_attention_2", {}, "flash_attention_2"),
        ("mistral", "sdpa", {"sliding_window": 8}, "sliding window"),
        ("qwen2", "sdpa", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding window"),
    ],
)
def test_what_cannot_share_says_why(model_type: str, attention: str, fields: dict[str, Any], wanted: str) -> None:
    found = cache_obstacle(AutoConfig.for_model(model_type, **fields), attention=attention)
    assert found is not None
    assert wanted in found
