"""A streamed task gives the same draws however they are asked for, and stops at what is wrong when it comes to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.demo_assets import needs_demo_packages
from tests.stand_ins import stand_in
from trainer.config.data_schema import DataSection
from trainer.config.errors import DataError
from trainer.data.heldout import write_heldout
from trainer.data.leakage import Overlap
from trainer.data.stream import StreamedTask
from trainer.data.task_tokens import recipe_of
from trainer.data.templates import Rendered

pytestmark = needs_demo_packages
NUM_ROWS, WINDOW = 25, 10
Open = Callable[..., StreamedTask]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def stream(tmp_path: Path, model_folder: Path) -> Open:
    def run(
        rows: list[Any], *, seed: int = 1, on_overlaps: Callable[[list[Overlap]], None] = print, **settings: Any
    ) -> StreamedTask:
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        heldout = settings.pop("heldout_folders", [])
        task = {"train": str(path), "heldout": "elsewhere", "format": "labelled", "streaming": True}
        data = DataSection.model_validate({"sequence_length_tokens": 64, **settings, "tasks": {"quiz": task}})
        recipe = recipe_of(
            "quiz", data, key=str(tmp_path), model_folder=str(model_folder), labels=(), heldout_folders=heldout
        )
        return StreamedTask(
            recipe,
            window_examples=WINDOW,
            on_bad_example=data.on_bad_example,
            on_overlaps=on_overlaps,
            seed=seed,
        )

    return run


def rows(number: int = NUM_ROWS) -> list[dict[str, str]]:
    return [{"id": f"r{n}", "text": f"film number {n}", "label": "yes"} for n in range(number)]


def draws(task: StreamedTask, numbers: range) -> list[str]:
    return [task.example_id(number) for number in numbers]


def test_every_pass_holds_each_example_once_shuffled_window_by_window_and_anew(stream: Open) -> None:
    passes = [draws(stream(rows()), range(n * NUM_ROWS, (n + 1) * NUM_ROWS)) for n in range(3)]
    wanted = [f"r{n}" for n in range(NUM_ROWS)]
    for names in passes:
        assert sorted(names) == sorted(wanted)
        for start in range(0, NUM_ROWS, WINDOW):
            assert sorted(names[start : start + WINDOW]) == sorted(wanted[start : start + WINDOW])
    assert len({tuple(names) for names in (*passes, wanted)}) == 4


def test_a_draw_is_the_same_however_it_is_reached(stream: Open) -> None:
    one = stream(rows())
    in_order = draws(one, range(60))
    resumed = stream(rows())
    assert draws(resumed, range(40, 60)) == in_order[40:]  # as after a checkpoint
    assert draws(one, range(3, 9)) == in_order[3:9]  # back to the beginning
    assert draws(stream(rows(), seed=2), range(60)) != in_order


def test_ids_and_examples_belong_together_across_windows(stream: Open) -> None:
    task = stream(rows())
    for number in range(WINDOW - 3, WINDOW + 3):
        text = f"film number {task.example_id(number)[1:]}\nLabel:"
        prompt = task[number].input_ids[: task[number].spans[0][0]].tolist()
        assert prompt == stream_ids(task, text)
    # A step may lie on both sides of a window's end: its first examples are still there after its last.
    kept = task.summary.num_examples
    task.example_id(WINDOW - 3)
    assert task.summary.num_examples == kept


def stream_ids(task: StreamedTask, text: str) -> list[int]:
    from trainer.data.tokenize import PromptEncoder, load_tokenizer

    return PromptEncoder(load_tokenizer(task._recipe.model_folder)).prompt_ids(text)


def test_a_bad_example_stops_the_run_when_it_is_read_or_is_skipped(stream: Open) -> None:
    spoiled = [*rows(3), {"text": "no label"}, *rows()]
    with pytest.raises(DataError, match=r"train\.jsonl:4: missing column label"):
        stream(spoiled)[0]
    task = stream(spoiled, on_bad_example="skip")
    assert len(set(draws(task, range(NUM_ROWS)))) > NUM_ROWS - 4
    assert task.summary.num_bad == 1


def test_an_over_long_example_stops_the_run_or_is_left_out(stream: Open) -> None:
    long = [*rows(3), {"id": "long", "text": "word " * 90, "label": "x"}]
    with pytest.raises(DataError, match=r"train\.jsonl:4 has \d+ tokens"):
        stream(long)[0]
    assert sorted(draws(stream(long, on_overlength="drop"), range(3))) == ["r0", "r1", "r2"]


def test_a_source_without_a_usable_example_ends_instead_of_turning_for_ever(stream: Open) -> None:
    long = [{"id": "long", "text": "word " * 90, "label": "x"}]
    with pytest.raises(DataError, match="empty data set"):
        stream(long, on_overlength="drop")[0]


def test_an_example_that_is_also_held_out_is_told_once_when_it_comes(stream: Open, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    held = Rendered("h1", "film number 7", "yes", bare_prompt="film number 7")
    write_heldout(tmp_path / "held/heldout.jsonl", "quiz", [held])
    told: list[list[Overlap]] = []
    task = stream(rows(), on_overlaps=told.append, heldout_folders=[tmp_path / "held"])
    draws(task, range(NUM_ROWS))
    assert [[overlap.train_id for overlap in overlaps] for overlaps in told] == [["r7"]]
