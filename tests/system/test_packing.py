"""Packed rows on real architectures: the logits and gradients of each example are those that it has alone.

Shapes: B rows, T tokens, V classes.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.demo_assets import needs_demo_packages
from tests.packing_faults import counting_on, seeing_across
from tests.stand_ins import stand_in
from trainer.config.errors import ConfigError
from trainer.data.collate import Batch, Item, collate
from trainer.data.packing import pack
from trainer.data.tokenize import TokenizedExample
from trainer.distributed import World
from trainer.engine.forward import logits_of
from trainer.isolation import refuse_contamination
from trainer.loss import normalised_loss, target_nll

pytestmark = needs_demo_packages

TOLERANCE = 1e-5
"""Relative to the largest logit or gradient, fp32."""

ROW_TOKENS, VOCABULARY = 48, 1024
ARCHITECTURES = ("llama", "qwen2", "gpt2")
ABSOLUTE = ("gpt2",)
"""Positions are learnt one by one: counting on changes logits. Rotary ones depend on distances only."""

Forward = Callable[..., torch.Tensor]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def named_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, stand_in(tmp_path_factory.mktemp("models") / request.param, request.param)


def load(folder: Path, attention: str = "sdpa") -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()


def examples() -> list[Item]:
    """Lengths from 1 to a whole row, several trained spans in some."""
    generator = torch.Generator().manual_seed(3)
    items = []
    for position, length in enumerate((1, 2, 5, 9, 14, 20, 21, 30, 33, 40, 47, 48)):
        ids = torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()
        spans = ((0, 2), (length - 3, length)) if length > 8 else ((length // 2, length),)
        items.append(Item(TokenizedExample(ids, spans), 0, position))
    return items


def packed_batch(items: list[Item]) -> Batch:
    rows = pack([item.length for item in items], row_tokens=ROW_TOKENS)
    assert any(len(row) > 1 for row in rows)
    return collate([[items[number] for number in row] for row in rows], pad_token_id=0, packed=True)


def gradients(model: PreTrainedModel, batches: list[Batch], forward: Forward) -> torch.Tensor:
    model.zero_grad()
    for batch in batches:
        nll_BT, _ = target_nll(forward(model, batch, objective="causal_lm", attention="sdpa"), batch.targets_BT)
        normalised_loss(nll_BT, world_size=1, num_targets=torch.tensor(40.0)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def largest_logit_difference(model: PreTrainedModel, forward: Forward, attention: str) -> float:
    """Between each example in its row and the same one alone, relative to the largest logit."""
    items, settings = examples(), {"objective": "causal_lm", "attention": attention}
    batch = packed_batch(items)
    worst = largest = 0.0
    with torch.no_grad():
        logits_BTV = forward(model, batch, **settings)
        rows = pack([item.length for item in items], row_tokens=ROW_TOKENS)
        for number, row in enumerate(rows):
            start = 0
            for item in (items[index] for index in row):
                alone_TV = logits_of(model, collate([[item]], pad_token_id=0), **settings)[0]
                part_TV = logits_BTV[number, start : start + item.length]
                worst = max(worst, float((part_TV - alone_TV).abs().max()))
                largest = max(largest, float(alone_TV.abs().max()))
                start += item.length
    return worst / largest


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_logit_is_that_of_the_example_alone(named_model: tuple[str, Path], attention: str) -> None:
    assert largest_logit_difference(load(named_model[1], attention), logits_of, attention) <= TOLERANCE


def test_the_gradient_of_packed_rows_is_that_of_single_examples(named_model: tuple[str, Path]) -> None:
    model, items = load(named_model[1]), examples()
    alone = gradients(model, [collate([[item]], pad_token_id=0) for item in items], logits_of)
    packed = gradients(model, [packed_batch(items)], logits_of)
    assert float((packed - alone).abs().max() / alone.abs().max()) <= TOLERANCE
    leaking = gradients(model, [packed_batch(items)], seeing_across)
    assert float((leaking - alone).abs().max() / alone.abs().max()) > 100 * TOLERANCE


def test_a_leak_across_examples_is_seen(named_model: tuple[str, Path]) -> None:
    assert largest_logit_difference(load(named_model[1]), seeing_across, "sdpa") > 100 * TOLERANCE


def test_positions_that_count_on_are_seen_where_they_matter(named_model: tuple[str, Path]) -> None:
    name, folder = named_model
    far = largest_logit_difference(load(folder), counting_on, "sdpa")
    assert (far > 100 * TOLERANCE) == (name in ABSOLUTE), far


def probe(model: PreTrainedModel, forward: Forward) -> None:
    """What a run does before it trains packed rows."""
    world = World(0, 1, 0, torch.device("cpu"))

    def run(batch: Batch) -> torch.Tensor:
        return forward(model, batch, objective="causal_lm", attention="sdpa")

    engine: Any = SimpleNamespace(world=world, model=model, forward=run)
    plan: Any = SimpleNamespace(
        memory=SimpleNamespace(model_type=model.config.model_type),
        config=SimpleNamespace(model=SimpleNamespace(attention="sdpa"), training=SimpleNamespace(precision="fp32")),
    )
    refuse_contamination(engine, plan, vocabulary=VOCABULARY, pad_token_id=0)


def test_a_model_that_keeps_examples_apart_may_train_packed(named_model: tuple[str, Path]) -> None:
    probe(load(named_model[1]), logits_of)


def test_a_model_that_lets_them_see_each_other_is_refused(named_model: tuple[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"^data\.packing: true, but in a model \w+ .* sees its neighbour"):
        probe(load(named_model[1]), seeing_across)


def test_a_model_whose_positions_count_on_is_refused(named_model: tuple[str, Path]) -> None:
    name, folder = named_model
    if name not in ABSOLUTE:
        probe(load(folder), counting_on)  # the same logits: nothing to refuse
        return
    with pytest.raises(ConfigError, match="depend on its place in the row"):
        probe(load(folder), counting_on)


def test_opt_lets_examples_see_each_other_and_is_refused(tmp_path: Path) -> None:
    # transformers makes a mask of ones for it where none is given, so that it looks like one text.
    with pytest.raises(ConfigError, match=r"in a model opt .* sees its neighbour"):
        probe(load(stand_in(tmp_path / "opt", "opt")), logits_of)


def test_the_probe_leaves_no_trace(named_model: tuple[str, Path]) -> None:
    model = load(named_model[1]).train()
    state = torch.get_rng_state()
    probe(model, logits_of)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
