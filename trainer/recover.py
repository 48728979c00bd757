"""Is what was lost gone, or only out of reach? `python -m trainer.recover RUN`.

For each REGRESSED measure a small adapter on the trained model learns a few examples of it that are never measured;
then it is measured again, and the adapter is thrown away. Quick recovery means that alignment or format was lost and
not knowledge (Zheng et al. 2025, arXiv 2501.13453). One process.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainer.config.data_schema import Source, describe
from trainer.config.evaluation_schema import RecoverySection
from trainer.config.plan import Plan, read_plan
from trainer.config.run_folder import RunFolder
from trainer.console import Screen
from trainer.data.collate import Item, collate
from trainer.data.sources import BadExamples
from trainer.data.tokenize import PromptEncoder, TokenizedExample, tail
from trainer.engine.inference import InferenceEngine
from trainer.evaluation.capability_row import CapabilityRow
from trainer.evaluation.examples import EvaluationExample, Selection
from trainer.evaluation.measure import Measurement, mean_of, run_tasks
from trainer.evaluation.prepare import all_examples
from trainer.evaluation.report import ForgettingReport, Recovery, read_report
from trainer.evaluation.suite import EvaluationTask
from trainer.loss import target_nll
from trainer.model import load_trained, with_small_adapter
from trainer.program import run_program, weights_folder
from trainer.run_data import read_data
from trainer.run_report import write_files
from trainer.seeding import seed_everything

ADAPTER_RANK = 4
EXAMPLES_PER_STEP = 16


def recover(run_path: Path, screen: Screen) -> str:
    """Probe every REGRESSED row of a run's report, and write the report with what came back.

    Raises:
        InputError: the run has no report.
    """
    folder = RunFolder(run_path.absolute())
    report = read_report(folder.path)
    lost = [row for row in report.rows if row.verdict == "REGRESSED"]
    if not lost:
        return f"{run_path}: nothing is REGRESSED: nothing to recover"
    plan = read_plan(folder.plan)
    section = plan.config.evaluation.recovery or RecoverySection()
    measurement = read_data(plan, screen).measurement
    weights = weights_folder(folder, _measured_step(report))
    found = []
    for row in lost:
        part = _only(measurement, row)
        lessons = _lessons(part, plan, num_examples=section.num_examples)
        if not lessons:
            screen.say(
                f"{row.name}: not probed: every example of {describe(_source(part.tasks[0]))} is measured, so none is "
                "left to learn from. Give its suite task a `recovery_data`, or lower evaluation.max_examples_per_task."
            )
            continue
        screen.say(f"{row.name}: {section.num_steps} steps on {len(lessons)} examples that are not measured")
        seed_everything(plan.config.run.seed, "recovery", row.name)
        model = with_small_adapter(load_trained(plan, weights, merge=True).to(plan.device), rank=ADAPTER_RANK)
        _learn(model, lessons, part.encoder, section)
        found.append(_recovery(row, _measure(model, part, plan), section, num_examples=len(lessons)))
    write_files(folder.path, replace(report, recovery=tuple(found)))
    return "\n".join(_told(one) for one in found)


def _measured_step(report: ForgettingReport) -> int:
    step = report.provenance["optimizer_steps"]
    assert isinstance(step, int)
    return step


def _only(measurement: Measurement, row: CapabilityRow) -> Measurement:
    """The one task that a row is of."""
    ((task, data),) = [
        (task, data)
        for task, data in zip(measurement.tasks, measurement.data, strict=True)
        if row.name in [description.name for description in task.descriptions]
    ]
    return replace(measurement, tasks=[task], data=[data])


def _lessons(part: Measurement, plan: Plan, *, num_examples: int) -> list[TokenizedExample]:
    """Examples of a task that are not measured, by the hash of their id."""
    (task,), (data,) = part.tasks, part.data
    measured = {example.example_id for example in data.examples}
    selection = Selection(
        task,
        encoder=part.encoder,
        context_tokens=plan.config.data.sequence_length_tokens,
        max_examples=num_examples + len(measured),
    )
    spec = task.spec.model_copy(update={"data": _source(task), "few_shot": None})
    taught = task.model_copy(update={"spec": spec})
    for row, example in all_examples(taught, BadExamples("error"), processes=1):
        if example.example_id not in measured:
            selection.consider(row, example)()
    chosen = selection.data().examples[:num_examples] if selection.num_chosen else []
    return [_lesson(task, example, part.encoder) for example in chosen]


def _source(task: EvaluationTask) -> Source:
    return task.spec.recovery_data or task.spec.data


def _lesson(task: EvaluationTask, example: EvaluationExample, encoder: PromptEncoder) -> TokenizedExample:
    """Prompt and right answer."""
    if task.labels:
        return TokenizedExample(example.prompt_ids, label=encoder.labels.index(example.target))
    if task.spec.kind == "generate":
        return tail(example.prompt_ids, encoder.response_ids(example.target))
    right = example.candidates.index(example.target) if task.spec.kind == "choice" else 0
    return tail(example.prompt_ids, example.candidate_ids[right])


def _learn(model: Any, lessons: Sequence[TokenizedExample], encoder: PromptEncoder, section: RecoverySection) -> None:
    """A few steps of AdamW, with the learning rate falling in a line."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=section.learning_rate, weight_decay=0.0)
    model.train()
    for step in range(section.num_steps):
        start = step * EXAMPLES_PER_STEP
        chosen = [lessons[(start + place) % len(lessons)] for place in range(min(EXAMPLES_PER_STEP, len(lessons)))]
        batch = collate([[Item(lesson)] for lesson in chosen], pad_token_id=encoder.pad_token_id).to(model.device)
        inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
        logits = model(**inputs).logits
        nll_BT, supervised_BT = target_nll(logits.unsqueeze(1) if encoder.labels else logits, batch.targets_BT)
        for group in optimizer.param_groups:
            group["lr"] = section.learning_rate * (1 - step / section.num_steps)
        optimizer.zero_grad(set_to_none=True)
        (nll_BT.sum() / supervised_BT.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


def _measure(model: Any, part: Measurement, plan: Plan) -> float:
    engine = InferenceEngine(
        model,
        objective=plan.config.objective,
        attention=plan.config.model.attention,
        precision=plan.config.training.precision,
        device=plan.device,
    )
    ((_, records),) = run_tasks(engine, part, check_stop=lambda: None).records.items()
    return mean_of(records)


def _recovery(row: CapabilityRow, probed: float, section: RecoverySection, *, num_examples: int) -> Recovery:
    return Recovery(
        name=row.name,
        before=row.before,
        after=row.after,
        probed=probed,
        recovered_share=(probed - row.after) / (row.before - row.after),
        num_steps=section.num_steps,
        num_examples=num_examples,
    )


def _told(one: Recovery) -> str:
    return (
        f"{one.name}: {one.before:.3g} before, {one.after:.3g} after, {one.probed:.3g} after {one.num_steps} steps on "
        f"{one.num_examples} examples: {one.recovered_share:.0%} of the loss came back"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the probe."""
    parser = argparse.ArgumentParser(prog="retain recover", description=__doc__)
    parser.add_argument("run", type=Path)
    options = parser.parse_args(argv)
    return run_program(options.run, "recover", lambda screen: recover(options.run, screen))


if __name__ == "__main__":
    sys.exit(main())
