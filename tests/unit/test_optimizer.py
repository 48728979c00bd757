"""AdamW in 32 and in 8 bits: what decays, what is really bytes, what a checkpoint brings back, and the exact norm."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import LlamaConfig, LlamaForCausalLM

from tests.recipe import Recipe
from trainer.config.schema import TrainingSection
from trainer.data.collate import Batch
from trainer.distributed import World
from trainer.engine.optimizer import adamw, global_norm, refuse_wide_moments
from trainer.engine.plain import PlainEngine
from trainer.loss import IGNORED, target_nll

NORM_TOLERANCE = 1e-12
"""Relative, fp64."""


@pytest.fixture(autouse=True)
def _one_precision_a_process() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def training(**changes: object) -> TrainingSection:
    plain = {"num_steps": 4, "examples_per_step": 8, "learning_rate": 1e-2, "weight_decay": 0.1}
    return TrainingSection(**{**plain, **changes})  # type: ignore[arg-type]  # the tests name fields of the schema


def two_layers() -> torch.nn.Module:
    """8192 weights (large enough for bytes), 64 biases, 1024 weights (too small), 16 biases."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.Linear(64, 16))


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 128)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_matrices_decay_and_vectors_do_not(kind: str) -> None:
    optimizer = adamw(two_layers(), training(optimizer=kind), num_axes=torch.Tensor.dim)
    groups = [([p.dim() for p in group["params"]], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [([2, 2], 0.1), ([1, 1], 0.0)]


def test_moments_in_8_bits_are_bytes_for_every_large_tensor() -> None:
    model = two_layers()
    optimizer = adamw(model, training(optimizer="adamw_8bit"), num_axes=torch.Tensor.dim)
    step(model, optimizer)
    large, small = optimizer.state[model[0].weight], optimizer.state[model[1].weight]
    assert (large["state1"].dtype, large["state2"].dtype) == (torch.uint8, torch.uint8)
    assert small["state1"].dtype == torch.float32
    refuse_wide_moments(optimizer)


def test_moments_that_are_not_bytes_are_refused() -> None:
    model = two_layers()
    optimizer = adamw(model, training(optimizer="adamw_8bit"), num_axes=torch.Tensor.dim)
    step(model, optimizer)
    state = optimizer.state[model[0].weight]
    state["state2"] = state["state2"].float()
    with pytest.raises(
        RuntimeError, match=r"adamw_8bit, but state2 of a tensor of shape \(64, 128\) is torch\.float32"
    ):
        refuse_wide_moments(optimizer)


def tiny_engine(recipe: Recipe, *overrides: str) -> PlainEngine:
    torch.manual_seed(1)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **size))
    return PlainEngine(model, plan=recipe.plan(*overrides), world=World(0, 1, 0, torch.device("cpu")))


def take_steps(engine: PlainEngine, seeds: range) -> list[float]:
    """Gradient norms of steps on random tokens."""
    norms = []
    for seed in seeds:
        ids_BT = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(seed))
        targets_BT = torch.cat([ids_BT[:, 1:], torch.full((4, 1), IGNORED)], dim=1)
        batch = Batch(ids_BT, torch.ones_like(ids_BT), targets_BT, torch.zeros_like(ids_BT))
        with engine.microstep(last=True):
            nll_BT, _ = target_nll(engine.forward(batch), targets_BT)
            engine.backward(nll_BT.sum(dim=1).mean())
        norm = engine.apply(learning_rate=1e-3)
        assert norm is not None
        norms.append(norm)
    return norms


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_a_resumed_optimizer_goes_on_bit_for_bit(recipe: Recipe, tmp_path: Path, kind: str) -> None:
    overrides = (f"training.optimizer={kind}",)
    whole = tiny_engine(recipe, *overrides)
    take_steps(whole, range(3))
    whole.save(tmp_path)
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    wanted = take_steps(whole, range(3, 6))

    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = tiny_engine(recipe, *overrides)
    resumed.model.load_state_dict(weights)
    resumed.load(tmp_path)
    assert take_steps(resumed, range(3, 6)) == wanted
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_the_norm_is_that_of_fp64_however_the_gradients_are_cut() -> None:
    flat = torch.randn(3_000_000, generator=torch.Generator().manual_seed(2)) * 1e-3
    exact = float(flat.double().square().sum().sqrt())
    for pieces in (1, 7, 1000):
        assert float(global_norm(flat.chunk(pieces))) == pytest.approx(exact, rel=NORM_TOLERANCE)
