"""What cannot be asked of data, packing, steps and streams: each with one clear message at its key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.batch import check_batch, rows_per_rank
from trainer.config.errors import ConfigError
from trainer.config.load import load_config
from trainer.config.schema import RunConfig


def config_with(folder: Path, *overrides: str, **task: Any) -> RunConfig:
    value = {
        "run": {"folder": "runs/x"},
        "model": {"path": "model"},
        "data": {
            "sequence_length_tokens": 128,
            "tasks": {"quiz": {"train": "t.jsonl", "heldout": "h.jsonl", "format": "labelled", **task}},
        },
        "training": {"num_steps": 10, "examples_per_step": 8, "learning_rate": 1e-4},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return load_config(path, overrides=list(overrides), variables={})


BY_TOKENS = ("training.examples_per_step=null", "training.tokens_per_step=1024")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("training.tokens_per_step=1024",), "wanted one of `examples_per_step` and `tokens_per_step`, and both are"),
        (("training.examples_per_step=null",), "wanted one of `examples_per_step` and `tokens_per_step`, and neither"),
        (
            ("data.packing=true", BY_TOKENS[0], "training.tokens_per_step=1000"),
            "found 1000, which is no whole number of packed rows of 128 tokens (data.sequence_length_tokens). "
            "Set it to 896",
        ),
        (
            ("data.packing=true", "objective=classification", "classification={labels: [a, b]}"),
            "data.packing is true, but objective is 'classification'",
        ),
        (("data.tasks.quiz.train_on=last",), "`train_on` belongs to format: chat; remove it"),
        (("data.tasks.quiz.streaming=true", "data.tasks.quiz.heldout=null"), "`streaming` needs a `heldout`"),
        (("data.tasks.quiz.streaming=true", "data.mixture.unit=tokens"), "unit: tokens needs the size or the lengths"),
        (
            ("data.tasks.quiz.streaming=true", "data.mixture.weights=proportional"),
            "weights: proportional needs the size or the lengths of each task, and tasks.quiz is streamed",
        ),
        (("data.tasks.quiz.streaming=true", *BY_TOKENS), "training.tokens_per_step needs the lengths of all examples"),
        (
            ("data.tasks.quiz.streaming=true", "data.stream_window_examples=7"),
            "data.stream_window_examples is 7, less than the 8 examples of a step",
        ),
        (("data.stages=[{share_of_steps: 1, weights: {quizz: 1}}]",), "no task has this name; the tasks are quiz"),
        (("data.replay={earlier: 0.1}",), "no stage has an earlier one"),
        (("data.tasks.quiz.weight={ramp: [0, 0]}",), "the weight stays 0"),
        (("data.tasks.quiz.weight=-1",), "found -1, wanted a number of at least 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(tmp_path, *overrides)
    assert message in str(caught.value)


def test_rows_of_a_step_are_known_ahead_or_follow_from_the_examples(tmp_path: Path) -> None:
    assert config_with(tmp_path).rows_per_step == 8
    assert config_with(tmp_path, *BY_TOKENS).rows_per_step is None
    assert config_with(tmp_path, "data.packing=true").rows_per_step is None
    packed = config_with(tmp_path, "data.packing=true", *BY_TOKENS)
    assert packed.rows_per_step == 1024 // 128
    assert rows_per_rank(packed, 4) == 2


def test_packed_rows_that_do_not_divide_among_the_ranks_are_refused_in_tokens(tmp_path: Path) -> None:
    packed = config_with(tmp_path, "data.packing=true", *BY_TOKENS)
    check_batch(packed, 2)
    with pytest.raises(ConfigError) as caught:
        check_batch(packed, 3)
    assert str(caught.value) == (
        "training.tokens_per_step: found 1024 (8 packed rows), which does not divide by 3 ranks. "
        "Set it to 768 or 1152, or change layout.processes."
    )


def test_steps_of_several_sizes_divide_among_any_ranks(tmp_path: Path) -> None:
    check_batch(config_with(tmp_path, *BY_TOKENS), 3)
    check_batch(config_with(tmp_path, "data.packing=true"), 3)


def test_a_resolved_configuration_loads_again(tmp_path: Path) -> None:
    stages = "data.stages=[{share_of_steps: 1, weights: {quiz: {steps: {0.0: 1, 0.5: 2}}}}]"
    config = config_with(tmp_path, stages, "data.packing=true", *BY_TOKENS)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(again, overrides=[], variables={}) == config
