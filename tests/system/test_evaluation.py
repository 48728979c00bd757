"""A run that is measured in pulses, after each stage and at the end; what is kept of it, and what is asked of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.demo import prepare_demo
from launch.machine import this_machine
from tests.demo_assets import needs_demo_packages
from tests.harness import Launched, retain

pytestmark = needs_demo_packages

SHORT = (
    "training.num_steps=12",
    "training.examples_per_step=8",
    "training.warmup_steps=1",
    "training.learning_rate=3e-3",
    "evaluation.max_examples_per_task=24",
    "evaluation.pulse.max_share_of_time=1.0",
    "evaluation.pulse.min_steps_between=3",
    "evaluation.pulse.examples_per_task=8",
    "checkpoint.every_steps=6",
)
EXIT_CODES = {"NON-INFERIOR": 0, "REGRESSED": 3, "INCONCLUSIVE": 4}


def train(folder: Path, *overrides: str) -> Launched:
    done = retain("train", "configs/continual.yaml", *SHORT, f"run.folder={folder}", *overrides)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages of four steps each."""
    prepare_demo("glassllm-en", machine=this_machine(), notify=print)
    folder = tmp_path_factory.mktemp("continual") / "run"
    train(folder, "evaluation.baseline=measure")
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_matrix_has_a_row_for_the_base_and_for_each_stage(run: Path) -> None:
    stages = report_of(run)["stages"]
    assert stages["steps"] == [0, 4, 8, 12]
    assert stages["tasks"] == ["translation-chrf", "ner-f1", "sentiment-accuracy", "continuation", "word-order"]
    assert stages["learnt_in"] == [1, 2, 3, 0, 0]
    for step, row in zip(stages["steps"], stages["scores_RT"], strict=True):
        for task, score in zip(stages["tasks"], row, strict=True):
            lines = (run / f"evaluation/step_{step:06d}/{task}.jsonl").read_text(encoding="utf-8").splitlines()
            values = [json.loads(line)["value"] for line in lines]
            assert score == pytest.approx(sum(values) / len(values), abs=1e-12)
    before_stage_3, base = stages["scores_RT"][2][2], stages["scores_RT"][0][2]
    before_stage_2, base_2 = stages["scores_RT"][1][1], stages["scores_RT"][0][1]
    wanted = (before_stage_3 - base + before_stage_2 - base_2) / 2
    assert stages["forward_transfer"] == pytest.approx(wanted, abs=1e-12)


def test_pulses_and_stages_compare_with_the_base_on_the_way(run: Path) -> None:
    at = {line["step"] for line in metrics_of(run) if "forgetting/prose/difference" in line}
    assert {4, 8, 12} < at  # stages and the end
    pulses = [
        line for line in metrics_of(run) if "drift/base/kl_nats_per_token" in line and line["step"] not in (4, 8, 12)
    ]
    assert pulses
    assert all(line["drift/base/kl_nats_per_token"] > 0 for line in pulses)
    assert all(
        line["forgetting/prose/interval_low"]
        <= line["forgetting/prose/difference"]
        <= line["forgetting/prose/interval_high"]
        for line in pulses
    )


def test_the_report_is_there_for_programs_people_and_tensorboard(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    report = report_of(run)
    assert report["verdict"] in html
    assert all(one["capability"] in html for one in report["capabilities"])
    assert "## Stages" in (run / "report.md").read_text(encoding="utf-8")
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert {"report/forest", "report/stages", "report/learning"} <= set(board.Tags()["images"])
    assert {"forgetting/word-order/difference", "drift/base/top1_agreement", "stages/backward_transfer"} <= set(
        board.Tags()["scalars"]
    )


def test_the_gate_tells_by_its_exit_code(run: Path) -> None:
    assert retain("report", str(run), "--gate").returncode == EXIT_CODES[report_of(run)["verdict"]]
    assert retain("report", str(run)).returncode == 0


def test_a_model_compared_with_itself_has_lost_nothing(run: Path, tmp_path: Path) -> None:
    done = retain("compare", f"{run}@0", f"{run}@0", "--gate", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = report_of(tmp_path / "out")["rows"]
    assert len(rows) == 9
    assert all(row["difference"] == 0 and row["p_value"] == 1 for row in rows)
    assert all(row["num_lost"] in (0, None) and row["num_gained"] in (0, None) for row in rows)
    assert all(row["verdict"] == "NON-INFERIOR" for row in rows)


def test_another_prompt_is_refused(run: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(run / "evaluation/step_000012", changed)
    lines = (changed / "prose.jsonl").read_text(encoding="utf-8").splitlines()
    one = json.loads(lines[3])
    lines[3] = json.dumps(one | {"prompt_sha256": "0" * 64})
    (changed / "prose.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = retain("compare", str(run), str(changed))
    assert done.returncode == 2
    assert "prompt_sha256" in done.stderr
    assert one["id"] in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_resumed_run_has_the_same_matrix(run: Path, tmp_path: Path) -> None:
    report = (run / "report.json").read_bytes()
    folder = run
    shutil.rmtree(folder / "checkpoints/step_000012")
    for step in ("step_000008", "step_000012"):
        shutil.rmtree(folder / "evaluation" / step)
    (folder / "report.json").unlink()
    done = retain("train", "--resume", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from step_000006" in done.stdout
    assert (folder / "report.json").read_bytes() == report


def test_the_baseline_is_reused_and_a_damaged_one_is_measured_again(run: Path, tmp_path: Path) -> None:
    first = train(tmp_path / "first", "training.num_steps=3")
    assert "measured by an earlier run" in first.stdout
    records = "evaluation/step_000000/word-order.jsonl"
    assert (tmp_path / "first" / records).read_bytes() == (run / records).read_bytes()
    (name,) = {word.strip("()") for word in first.stdout.split() if word.endswith(".zip)")}
    path = this_machine().cache_folder / "baselines" / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    second = train(tmp_path / "second", "training.num_steps=3")
    assert f"WARNING: {path}" in second.stdout
    assert "measuring before training" in second.stdout
    assert (tmp_path / "second" / records).read_bytes() == (run / records).read_bytes()


def test_a_run_can_be_measured_later(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "later"
    done = train(folder, "evaluation.when=later")
    assert f"retain evaluate {folder}" in done.stdout
    assert not (folder / "report.json").exists()
    measured = retain("evaluate", str(folder))
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert report_of(folder)["rows"] == report_of(run)["rows"]


def test_recovery_is_asked_of_what_regressed(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(
        folder,
        "training.learning_rate=1e-2",
        "data.stages=[]",
        "evaluation.recovery={num_steps: 4, num_examples: 16}",
    )
    report = report_of(folder)
    assert [row["verdict"] for row in report["rows"] if row["name"] == "prose"] == ["REGRESSED"]
    (probe,) = [one for one in report["recovery"] if one["name"] == "prose"]
    assert probe["recovered_share"] > 0
    assert "Recovery probe" in (folder / "report.md").read_text(encoding="utf-8")
