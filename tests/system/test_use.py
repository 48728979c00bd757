"""What a person does with a finished run: report, export, generate."""

from collections.abc import Callable
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.demo_assets import needs_demo_packages
from tests.harness import retain

pytestmark = needs_demo_packages

PROMPT = "Is this review positive or negative?\nA warm film.\nAnswer:"


def test_an_export_never_overwrites(run: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    done = retain("export", str(run("single")), str(tmp_path))
    assert done.returncode == 2
    assert "exists and is not empty" in done.stdout + done.stderr
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_generation_is_repeatable_and_temperature_has_an_effect(run: Callable[[str], Path]) -> None:
    ask = ("generate", str(run("single")), PROMPT, "--max-new-tokens", "12")
    greedy, again = retain(*ask), retain(*ask)
    assert greedy.returncode == 0, greedy.stdout + greedy.stderr
    assert greedy.stdout == again.stdout
    sampled = {retain(*ask, "--temperature", "3.0", "--seed", str(seed)).stdout for seed in (1, 2)}
    assert len(sampled | {greedy.stdout}) > 1


def test_the_report_is_shown_again_and_names_its_origin(run: Callable[[str], Path]) -> None:
    done = retain("report", str(run("zero2")))
    assert done.returncode == 0
    assert "Before and after training" in done.stdout
    assert "prose" in done.stdout
    markdown = (run("zero2") / "report.md").read_text(encoding="utf-8")
    for key in ("config_sha256", "torch", "seed", "zero2"):
        assert key in markdown


def test_tensorboard_shows_loss_speed_and_heldout_scores(run: Callable[[str], Path]) -> None:
    events = EventAccumulator(str(run("zero2") / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = {
        "train/loss",
        "train/gradient_norm",
        "train/learning_rate",
        "speed/tokens_per_second",
        "train_task_loss/sentiment",
        "heldout/prose",
        "heldout/sentiment-accuracy",
    }
    assert expected <= tags
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("heldout/prose")] == [0, 12]


def test_only_one_rank_speaks_and_libraries_do_not(run: Callable[[str], Path]) -> None:
    logs = run("zero2") / "logs"
    assert {path.name for path in logs.glob("rank_*.log")} == {"rank_00000.log", "rank_00001.log"}
    assert "DeepSpeed" in (logs / "rank_00000.log").read_text(encoding="utf-8")
