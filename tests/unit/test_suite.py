"""What is measured: names, kinds and scorers of every task, and what a suite file may not say."""

from pathlib import Path
from typing import Any

import pytest

from trainer.config.errors import ConfigError
from trainer.config.schema import RunConfig
from trainer.evaluation.capability_row import TaskDescription
from trainer.evaluation.suite import EvaluationTask, evaluation_tasks
from trainer.evaluation.suite_schema import SuiteTask

PROSE = """\
tasks:
  prose:
    kind: text
    data: ${RETAIN_CACHE}/prose.jsonl
    response: "{{ text }}"
"""
REVIEWS = {
    "train": "reviews/train.jsonl",
    "heldout": "reviews/heldout.jsonl",
    "prompt": "Review: {{ text }}\n",
    "response": " {{ label }}",
}


def config_with(*, suite: str | None = None, **tasks: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"folder": "runs/x"},
            "model": {"path": "models/x"},
            "data": {"sequence_length_tokens": 64, "tasks": tasks},
            "training": {"num_steps": 1, "examples_per_step": 1, "learning_rate": 0.1},
            "evaluation": {"suite": suite},
        }
    )


def suite_file(folder: Path, text: str) -> str:
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def tasks_of(config: RunConfig) -> list[EvaluationTask]:
    return evaluation_tasks(config, variables={"RETAIN_CACHE": "/cache"})


def complaint(folder: Path, text: str) -> str:
    """What is said about a suite, the folder left out."""
    with pytest.raises(ConfigError) as caught:
        tasks_of(config_with(suite=suite_file(folder, text), reviews=REVIEWS))
    return str(caught.value).replace(f"{folder}/", "")


def base_task(**fields: Any) -> EvaluationTask:
    spec = SuiteTask.model_validate({"data": "d.jsonl", "prompt": "p", "response": "r", **fields})
    return EvaluationTask(name="n", capability="c", examples="n", group="base", spec=spec)


def test_without_a_score_a_trained_task_is_measured_by_its_loss_with_the_end_of_text() -> None:
    (task,) = tasks_of(config_with(reviews=REVIEWS))
    assert (task.name, task.capability, task.group) == ("reviews-loss", "reviews", "trained")
    assert (task.spec.kind, task.spec.end_of_text) == ("text", True)
    assert (task.spec.data, task.spec.prompt, task.spec.response) == (
        "reviews/heldout.jsonl",
        "Review: {{ text }}\n",
        " {{ label }}",
    )


def test_a_scored_task_is_measured_twice_and_the_suite_comes_last(tmp_path: Path) -> None:
    config = config_with(
        suite=suite_file(tmp_path, PROSE),
        reviews={**REVIEWS, "score": {"kind": "choice", "choices": ["good", "bad"]}},
        names={**REVIEWS, "score": {"kind": "generate", "max_new_tokens": 7}},
        spanish={**REVIEWS, "score": {"kind": "generate", "scorer": "chrf"}},
    )
    assert [(task.name, task.group, task.spec.kind, task.scorer) for task in tasks_of(config)] == [
        ("reviews-loss", "trained", "text", "token_nll@1"),
        ("reviews-accuracy", "trained", "choice", "choice_accuracy@1"),
        ("names-loss", "trained", "text", "token_nll@1"),
        ("names-exact_match", "trained", "generate", "exact_match@1"),
        ("spanish-loss", "trained", "text", "token_nll@1"),
        ("spanish-chrf", "trained", "generate", "chrf@1"),
        ("prose", "base", "text", "token_nll@1"),
    ]


def test_the_score_of_a_trained_task_uses_its_own_texts_and_settings() -> None:
    score = {"kind": "choice", "choices": ["good", "bad"], "max_new_tokens": 7}
    spec = tasks_of(config_with(reviews={**REVIEWS, "score": score}))[1].spec
    assert (spec.data, spec.prompt, spec.response) == ("reviews/heldout.jsonl", "Review: {{ text }}\n", " {{ label }}")
    assert (spec.choices, spec.choices_column, spec.max_new_tokens) == (("good", "bad"), None, 7)
    assert not spec.end_of_text


def test_a_base_ability_is_measured_under_its_own_name_as_the_suite_says(tmp_path: Path) -> None:
    task = tasks_of(config_with(suite=suite_file(tmp_path, PROSE), reviews=REVIEWS))[-1]
    assert (task.name, task.capability, task.group) == ("prose", "prose", "base")
    assert (task.spec.data, task.spec.prompt, task.spec.end_of_text) == ("/cache/prose.jsonl", "", False)


@pytest.mark.parametrize(
    ("fields", "scorer", "measure", "unit", "higher_is_better", "margin", "tier"),
    [
        ({"kind": "text"}, "token_nll@1", "loss", "nats/token", False, 0.05, "pulse"),
        ({"kind": "choice", "choices": ["a", "b"]}, "choice_accuracy@1", "accuracy", "share", True, 0.01, "pulse"),
        (
            {"kind": "choice", "choices_column": "c", "length_normalised": True, "margin": 0.03},
            *("choice_accuracy_per_byte@1", "accuracy", "share", True, 0.03, "pulse"),
        ),
        ({"kind": "generate"}, "exact_match@1", "exact match", "share", True, 0.02, "stage"),
        ({"kind": "generate", "scorer": "chrf"}, "chrf@1", "chrF", "share", True, 0.02, "stage"),
        ({"kind": "generate", "scorer": "f1", "tier": "full"}, "f1@1", "word F1", "share", True, 0.02, "full"),
        (
            {"kind": "generate", "scorer": "numeric", "answer_pattern": "#(.)", "tier": "pulse"},
            *("numeric@1 of #(.)", "numeric match", "share", True, 0.02, "pulse"),
        ),
    ],
)
def test_each_kind_has_its_scorer_its_reading_its_margin_and_its_tier(
    fields: dict[str, Any], scorer: str, measure: str, unit: str, higher_is_better: bool, margin: float, tier: str
) -> None:
    task = base_task(**fields)
    assert (task.scorer, task.spec.tier_in_force) == (scorer, tier)
    description = TaskDescription(
        name="n",
        capability="c",
        group="base",
        kind=fields["kind"],
        measure=measure,
        unit=unit,
        higher_is_better=higher_is_better,
        margin=margin,
    )
    assert task.descriptions == [description]


def test_several_measurements_may_be_of_one_capability(tmp_path: Path) -> None:
    more = PROSE + PROSE.removeprefix("tasks:\n").replace("prose:", "poems:") + "    capability: prose\n"
    tasks = tasks_of(config_with(suite=suite_file(tmp_path, more), reviews=REVIEWS))[-2:]
    assert [(task.name, task.examples, task.capability) for task in tasks] == [
        ("prose", "prose", "prose"),
        ("poems", "poems", "prose"),
    ]


def test_a_capability_with_the_name_of_a_trained_task_is_refused(tmp_path: Path) -> None:
    assert complaint(tmp_path, PROSE + "    capability: reviews\n") == (
        "suite.yaml: tasks.prose.capability: reviews is a trained task. Rename it."
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("margin: 0.0", "suite.yaml:6: tasks.prose.margin: "),
        ("margin: -0.1", "suite.yaml:6: tasks.prose.margin: "),
        ("tier: never", "suite.yaml:6: tasks.prose.tier: "),
        ("few_shot: {data: d.jsonl, num_examples: 0}", "suite.yaml:6: tasks.prose.few_shot.num_examples: "),
        ("few_shot: {data: d.jsonl, num_examples: 2}", "suite.yaml:2: tasks.prose: `few_shot` is for the kinds"),
        ("answer_pattern: 'A: (.)'", "suite.yaml:2: tasks.prose: `answer_pattern` belongs to kind: generate"),
        ("answer_pattern: 'A: .'", "suite.yaml:6: tasks.prose.answer_pattern: "),
        ("answer_pattern: '(A): (.)'", "suite.yaml:6: tasks.prose.answer_pattern: "),
        ("answer_pattern: '('", "suite.yaml:6: tasks.prose.answer_pattern: "),
    ],
)
def test_what_does_not_fit_a_text_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    found = complaint(tmp_path, f"{PROSE}    {line}\n")
    assert found.startswith(message)
    assert "\n" not in found


def test_solved_examples_do_not_go_with_a_chat_template() -> None:
    few_shot = {"data": "d.jsonl", "num_examples": 2}
    assert base_task(kind="generate", few_shot=few_shot).spec.few_shot is not None
    with pytest.raises(ValueError, match="without a chat template"):
        base_task(kind="generate", few_shot=few_shot, chat_template=True)


def test_an_unknown_key_is_told_with_file_line_and_the_nearest_one(tmp_path: Path) -> None:
    text = PROSE + "    respond: x\n"
    assert complaint(tmp_path, text).startswith(
        "suite.yaml:6: tasks.prose.respond: unknown key. Did you mean tasks.prose.response?"
    )


def test_an_unknown_kind_is_told_with_file_line_and_the_known_ones(tmp_path: Path) -> None:
    message = complaint(tmp_path, PROSE.replace("kind: text", "kind: texts"))
    assert message.startswith(
        "suite.yaml:3: tasks.prose.kind: found 'texts', wanted one of text, choice, generate, classify."
    )


def test_a_missing_key_is_told_with_the_line_of_its_task(tmp_path: Path) -> None:
    message = complaint(tmp_path, PROSE.replace('    response: "{{ text }}"\n', ""))
    assert message.startswith("suite.yaml:2: tasks.prose.response: missing.")


def test_all_mistakes_of_a_suite_are_told_at_once(tmp_path: Path) -> None:
    lines = complaint(tmp_path, PROSE.replace("kind: text", "kind: 3") + "    scorer: bleu\n").splitlines()
    assert [line.split(": found")[0] for line in lines] == [
        "suite.yaml:3: tasks.prose.kind",
        "suite.yaml:6: tasks.prose.scorer",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: text", "kind: choice", "suite.yaml:2: tasks.prose: kind: choice needs either `choices` or"),
        (
            "kind: text",
            "kind: choice\n    choices: [a, b]\n    choices_column: c",
            "suite.yaml:2: tasks.prose: kind: choice needs either `choices` or",
        ),
        ("kind: text", "kind: text\n    choices: [a]", "suite.yaml:2: tasks.prose: `choices` and `choices_column`"),
        ("kind: text", "kind: generate\n    choices_column: c", "suite.yaml:2: tasks.prose: `choices` and"),
    ],
)
def test_candidates_belong_to_a_choice_and_to_nothing_else(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert complaint(tmp_path, PROSE.replace(old, new)).startswith(message)


@pytest.mark.parametrize("text", ["tasks: {}\n", "{}\n"])
def test_a_suite_without_tasks_is_refused(tmp_path: Path, text: str) -> None:
    message = complaint(tmp_path, text)
    assert message.startswith("suite.yaml")
    assert ": tasks: " in message


def test_an_unknown_variable_and_a_missing_file_are_told(tmp_path: Path) -> None:
    assert complaint(tmp_path, PROSE.replace("RETAIN_CACHE", "CACHE")).startswith(
        "suite.yaml:4: tasks.prose.data: unknown variable ${CACHE}. Known: RETAIN_CACHE."
    )
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read \(No such file"):
        tasks_of(config_with(suite=str(tmp_path / "gone.yaml"), reviews=REVIEWS))


def test_a_base_ability_with_the_name_of_a_trained_task_is_refused(tmp_path: Path) -> None:
    assert complaint(tmp_path, PROSE.replace("prose:", "reviews:")) == (
        "suite.yaml: tasks.reviews: this is also a trained task (data.tasks.reviews). "
        "A base ability must not be trained on: rename it or measure something else."
    )


def test_a_base_ability_with_the_name_of_a_measure_of_a_trained_task_is_refused(tmp_path: Path) -> None:
    # Its records would be written over those of the trained task.
    assert "tasks.reviews-loss" in complaint(tmp_path, PROSE.replace("prose:", "reviews-loss:"))


@pytest.mark.parametrize("kind", ["kind: generate", "kind: choice\n    choices: [a, b]"])
def test_a_task_that_answers_a_prompt_needs_one(tmp_path: Path, kind: str) -> None:
    assert "tasks.prose" in complaint(tmp_path, PROSE.replace("kind: text", kind))
