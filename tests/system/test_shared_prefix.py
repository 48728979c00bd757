"""Candidates of the demo's real model behind shared prompts, on two ranks of every strategy. Run as a program: a rank.

Shapes: B sequences, T tokens, V vocabulary.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM

from launch.demo import prepare_demo
from launch.machine import this_machine
from launch.operators import prepare_operators
from tests.demo_assets import needs_demo_packages
from tests.fleet import Case
from tests.harness import REPOSITORY
from trainer.config.plan import Plan, read_plan
from trainer.console import Screen
from trainer.data.collate import Item, collate
from trainer.data.tokenize import PromptEncoder, load_tokenizer, tail
from trainer.distributed import World, end_rank, join_world
from trainer.engine.protocol import Engine
from trainer.evaluation.examples import EvaluationExample
from trainer.evaluation.likelihood import Likelihood, score_candidates
from trainer.evaluation.measure import untouched
from trainer.evaluation.shared_rows import shared_header
from trainer.loss import target_nll
from trainer.worker import build_engine

pytestmark = needs_demo_packages

WAYS = {
    "ddp": ("layout.strategy=ddp",),
    "zero1": ("layout.strategy=zero1",),
    "zero2": ("layout.strategy=zero2",),
    "zero3": ("layout.strategy=zero3",),
    "zero3 lora": ("layout.strategy=zero3", "method=lora"),
    "zero3 bf16": ("layout.strategy=zero3", "training.precision=bf16"),
}
UNSCORED = {f"{way} unscored": WAYS[way] for way in ("ddp", "zero3")}

ROUNDING = 1e-5
"""Relative, nats in fp32."""

BF16_ROUNDING = 0.02
"""Relative, nats where weights have 8 bits."""

TIMEOUT_SECONDS = 240
NUM_EXAMPLES, NUM_SHORT, EXAMPLES_PER_BATCH = 14, 3, 3


def real_examples(model: Path, tasks: Path) -> list[EvaluationExample]:
    """Beginnings of news with four endings each, most of them behind one solved example; short ones end at a word."""
    encoder = PromptEncoder(load_tokenizer(model))
    lines = (tasks / "continuation" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: NUM_EXAMPLES + 1]]
    header = " ".join(rows[0]["prompt"].split()[:12]) + "\n\n"
    examples = []
    for number, row in enumerate(rows[1:]):
        prompt = " ".join(row["prompt"].split()[:12])
        choices = [" " + (text.split()[0] if number < NUM_SHORT else text) for text in row["choices"]]
        prompt_ids = encoder.prompt_ids(prompt if number == NUM_SHORT else header + prompt)
        candidate_ids = tuple(tuple(encoder.text_ids(text)) for text in choices)
        examples.append(
            EvaluationExample(row["id"], prompt, choices[0], tuple(choices), tuple(prompt_ids), candidate_ids)
        )
    assert shared_header(examples)
    return examples


def train_one_step(engine: Engine, examples: list[EvaluationExample]) -> tuple[float, float | None]:
    """Loss and gradient norm of a step on the right endings."""
    engine.model.train()
    items = [[Item(tail(example.prompt_ids, example.candidate_ids[0]))] for example in examples[:4]]
    batch = collate(items, pad_token_id=0).to(engine.world.device)
    with engine.microstep(last=True):
        nll_BT, _ = target_nll(engine.forward(batch), batch.targets_BT)
        loss = nll_BT.sum() / 100
        engine.backward(loss)
    return float(loss), engine.apply(learning_rate=1e-3)


def run_case(plan: Plan, world: World, *, is_scored: bool) -> dict[str, Any]:
    """Collective: two steps of training, scored before and between or not at all."""
    AcceleratorState._reset_state(reset_partial_state=True)  # one process, one precision, accelerate believes
    engine = build_engine(plan, world, None, Screen(sys.stdout, speaks=False))
    assert engine.cache_obstacle is None, engine.cache_obstacle
    folder = Path(plan.model_folder)
    examples = real_examples(folder, folder.parents[1] / "tasks")
    steps, scores = [], []
    for _ in range(2):
        if is_scored:
            with untouched(engine):
                found = score_candidates(
                    engine, examples, pad_token_id=0, examples_per_batch=EXAMPLES_PER_BATCH, check_stop=lambda: None
                )
            scores.append([[asdict(one) for one in row] for row in found])
        steps.append(train_one_step(engine, examples))
    parts = engine.world.gather_objects(scores)
    return {"steps": steps, "scores": scores, "equal_on_all_ranks": all(part == scores for part in parts)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks of this file found, by way; all in one launch, whose imports take longest."""
    folder = tmp_path_factory.mktemp("shared_prefix")
    short = ("layout.processes=2", "training.examples_per_step=8", "training.examples_per_device=4")
    cases, environment = {}, {}
    for number, (name, overrides) in enumerate({**WAYS, **UNSCORED}.items()):
        plan = Case(overrides=(*short, *overrides)).plan(folder / f"run_{number}")
        cases[name] = str(folder / f"plan_{number}.json")
        Path(cases[name]).write_text(plan.to_json(), encoding="utf-8")
        environment = {**os.environ, **plan.environment, "PYTHONPATH": str(REPOSITORY)}
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    prepare_operators(environment, notify=print)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", __name__)
    done = subprocess.run(
        (sys.executable, *launcher, str(folder / "cases.json"), str(folder / "results.json")),
        env=environment,
        cwd=REPOSITORY,
        timeout=TIMEOUT_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads((folder / "results.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def demo() -> tuple[list[EvaluationExample], list[list[Likelihood]]]:
    """Examples, and the likelihoods of each candidate as a sequence of its own, by transformers alone."""
    machine = this_machine()
    prepare_demo("glassllm-en", machine=machine, notify=print)
    folder = machine.cache_folder / "demo/models/glassllm-en"
    examples = real_examples(folder, machine.cache_folder / "demo/tasks")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def alone(prompt_ids: tuple[int, ...], candidate_ids: tuple[int, ...]) -> Likelihood:
        ids_T = torch.tensor([*prompt_ids, *candidate_ids])
        with torch.no_grad():
            log_p_TV = model(input_ids=ids_T.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1)
        places = range(len(prompt_ids), len(ids_T))
        return Likelihood(-sum(log_p_TV[t - 1, ids_T[t]].item() for t in places), len(places))

    return examples, [[alone(one.prompt_ids, ids) for ids in one.candidate_ids] for one in examples]


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_score_as_one_sequence_at_a_time(
    way: str, runs: dict[str, Any], demo: tuple[list[EvaluationExample], list[list[Likelihood]]]
) -> None:
    _, wanted = demo
    assert runs[way]["equal_on_all_ranks"]
    first, second = runs[way]["scores"]
    assert first != second  # a step has been taken
    rounding = BF16_ROUNDING if "bf16" in way else ROUNDING
    for found_row, wanted_row in zip(first, wanted, strict=True):
        assert [one["num_tokens"] for one in found_row] == [one.num_tokens for one in wanted_row]
        nats, wanted_nats = [one["nats"] for one in found_row], [one.nats for one in wanted_row]
        assert nats == pytest.approx(wanted_nats, rel=rounding)
        if "bf16" not in way:
            assert nats.index(min(nats)) == wanted_nats.index(min(wanted_nats))


@pytest.mark.parametrize("way", UNSCORED)
def test_training_goes_on_as_if_nothing_had_been_scored(way: str, runs: dict[str, Any]) -> None:
    assert runs[way]["steps"] == runs[way.removesuffix(" unscored")]["steps"]
    assert runs[way]["scores"] == []


def main(cases: Path, results: Path) -> None:
    """Every case on this rank."""
    found, world = {}, None
    for name, path in json.loads(cases.read_text(encoding="utf-8")).items():
        plan = read_plan(Path(path))
        world = world or join_world(plan)
        found[name] = run_case(plan, world, is_scored=name in WAYS)
    if world is not None and world.is_main:
        results.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    end_rank(0)
