"""Everything that a run reads from files: training examples in their order, held-out examples, and no overlap of both.

The same on every rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.config.data_schema import DataSection, describe
from trainer.config.errors import DataError
from trainer.config.plan import Plan
from trainer.console import Screen
from trainer.data.collate import StepBatches
from trainer.data.examples import task_examples
from trainer.data.leakage import Leakage, summary
from trainer.data.mixture import Mixture
from trainer.data.shares import task_shares
from trainer.data.sources import BadExamples
from trainer.data.templates import Rendered
from trainer.data.tokenize import PromptEncoder, TaskData, tokenize_task
from trainer.distributed import World
from trainer.evaluation.examples import EvaluationData, build_examples
from trainer.evaluation.measure import Measurement
from trainer.evaluation.suite import EvaluationTask, evaluation_tasks
from trainer.model import load_tokenizer


@dataclass(frozen=True, slots=True)
class RunData:
    """Everything read from files."""

    tasks: list[TaskData]
    mixture: Mixture
    shares: list[float]
    """Share of each task, as asked."""

    measurement: Measurement

    def batches(self, plan: Plan, world: World) -> StepBatches:
        """This rank's micro-batches, by step."""
        data, training = plan.config.data, plan.config.training
        return StepBatches(
            tasks=self.tasks,
            mixture=self.mixture,
            examples_per_step=training.examples_per_step,
            examples_per_microbatch=plan.examples_per_microbatch,
            rank=world.rank,
            world_size=world.size,
            pad_token_id=self.measurement.encoder.pad_token_id,
            width=data.sequence_length_tokens if data.padding == "sequence_length" else None,
        )


def read_data(plan: Plan, screen: Screen) -> RunData:
    """Read, render and encode training and held-out examples.

    Raises:
        InputError: a source, an example, a column or a length is wrong, or a held-out example is trained on.
    """
    config = plan.config
    encoder = PromptEncoder(load_tokenizer(plan.model_folder), labels=config.labels)
    evaluations = evaluation_tasks(config, variables={"RETAIN_CACHE": plan.cache_folder})
    heldout = [_heldout(plan, task, encoder, screen) for task in evaluations]
    leakage = _leakage(config.data, evaluations, heldout)
    tasks = [_training_task(config.data, name, encoder, leakage, screen) for name in config.data.tasks]
    _report_leakage(config.data, evaluations, heldout, leakage, screen)
    mixture, shares = _mixture(plan, tasks)
    measurement = Measurement(evaluations, heldout, encoder, plan.evaluation_examples_per_batch)
    return RunData(tasks, mixture, shares, measurement)


def _heldout(plan: Plan, task: EvaluationTask, encoder: PromptEncoder, screen: Screen) -> EvaluationData:
    context = plan.config.data.sequence_length_tokens
    chosen = build_examples(
        task,
        encoder=encoder,
        context_tokens=context,
        max_examples=plan.config.evaluation.max_examples_per_task,
        on_bad_example=plan.config.data.on_bad_example,
    )
    if chosen.num_bad:
        screen.say(f"{task.name}: {chosen.num_bad} bad examples left out")
    if chosen.num_dropped_overlength:
        screen.say(f"{task.name}: {chosen.num_dropped_overlength} examples do not fit {context} tokens: left out")
    if len(chosen.examples) < 2:
        raise DataError(f"{describe(task.spec.data)}: one example of {task.name}: wanted at least 2 to compare.")
    return chosen


def _training_task(
    data: DataSection, name: str, encoder: PromptEncoder, leakage: Leakage | None, screen: Screen
) -> TaskData:
    bad = BadExamples(data.on_bad_example)

    def rendered() -> Iterator[Rendered]:
        for _, example in task_examples(name, data.tasks[name], part="train", bad=bad):
            if leakage is not None:
                leakage.look(name, example.example_id, example.content, prompt=example.bare_prompt)
            yield example
        bad.finish(f"data.tasks.{name}.train")

    task = tokenize_task(
        name,
        rendered(),
        encoder=encoder,
        chat_template=data.chat_template,
        sequence_length_tokens=data.sequence_length_tokens,
        on_overlength=data.on_overlength,
    )
    dropped = f", {task.num_dropped_overlength} over-long dropped" if task.num_dropped_overlength else ""
    dropped += f", {bad.count} bad ones skipped" if bad.count else ""
    screen.say(f"task {name}: {len(task):,} training examples{dropped}")
    return replace(task, num_bad=bad.count)


def _leakage(
    data: DataSection, evaluations: Sequence[EvaluationTask], heldout: Sequence[EvaluationData]
) -> Leakage | None:
    """The held-out texts by capability: loss and score of a task are of the same ones."""
    if data.leakage == "off":
        return None
    texts = {
        task.capability: [(source.example_id, source.content) for source in chosen.sources]
        for task, chosen in zip(evaluations, heldout, strict=True)
    }
    prompts = {
        task.capability: {source.example_id: source.bare_prompt for source in chosen.sources}
        for task, chosen in zip(evaluations, heldout, strict=True)
    }
    return Leakage(texts, similarity=data.near_duplicate_similarity, prompts=prompts)


def _report_leakage(
    data: DataSection,
    evaluations: Sequence[EvaluationTask],
    heldout: Sequence[EvaluationData],
    leakage: Leakage | None,
    screen: Screen,
) -> None:
    found = leakage.found() if leakage is not None else []
    if not found:
        return
    totals = {task.capability: len(chosen.examples) for task, chosen in zip(evaluations, heldout, strict=True)}
    lines = summary(found, totals)
    if data.leakage == "error":
        advice = "Remove them from the training data; or, knowing that scores are too good, set data.leakage=warn."
        raise DataError("\n".join([*lines, f"data.leakage: {advice}"]))
    for line in lines:
        screen.say(f"WARNING: {line}")


def _mixture(plan: Plan, tasks: Sequence[TaskData]) -> tuple[Mixture, list[float]]:
    """The order of the whole run, and the shares that it keeps."""
    config = plan.config
    tokens = [task.example_tokens() for task in tasks]
    shares = task_shares(
        config.data.mixture,
        weights=[section.weight for section in config.data.tasks.values()],
        sizes=[len(task) for task in tasks],
        tokens=[int(np.sum(lengths)) for lengths in tokens],
    )
    mixture = Mixture(
        sizes=[len(task) for task in tasks],
        shares=shares,
        length=config.training.num_steps * config.training.examples_per_step,
        seed=config.run.seed,
        example_tokens=tokens if config.data.mixture.unit == "tokens" else None,
    )
    return mixture, shares.tolist()
