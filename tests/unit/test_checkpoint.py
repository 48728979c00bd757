"""A checkpoint is whole or it is not there; and a run goes on only from its own."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.recipe import Recipe
from trainer.checkpoint import check_checkpoint, load_state, save_checkpoint
from trainer.config.errors import ConfigError
from trainer.config.plan import Plan
from trainer.config.run_folder import RunFolder
from trainer.seeding import random_state, restore_random_state


@dataclass(frozen=True)
class Rank:
    """One rank whose fellows never let it wait."""

    rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        pass


class PowerCut(Exception):
    """Stands for whatever ends a process in the middle of a save."""


@dataclass
class StubModel:
    """Writes what it is given, as `save_pretrained` does."""

    fails: bool = False

    def save_pretrained(self, folder: str, *, state_dict: dict[str, Tensor], max_shard_size: str) -> None:
        assert max_shard_size == "2GB"
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_text(str(sorted(state_dict)))
        if self.fails:
            raise PowerCut


@dataclass
class StubEngine:
    """An engine whose whole state is one word, and which can fail at each stage of a save."""

    state: str = "fresh"
    fails_at: str = ""
    world: Rank = field(default_factory=Rank)

    @property
    def model(self) -> StubModel:
        return StubModel(fails=self.fails_at == "weights")

    def save(self, folder: Path) -> None:
        (folder / "optimizer.pt").write_text(self.state)
        if self.fails_at == "save":
            raise PowerCut

    def load(self, folder: Path) -> None:
        self.state = (folder / "optimizer.pt").read_text()

    def gather_weights(self) -> dict[str, Tensor]:
        if self.fails_at == "gather":
            raise PowerCut
        return {"w": torch.zeros(1)}


@pytest.fixture
def plan(recipe: Recipe) -> Plan:
    return recipe.plan("checkpoint.keep_last=2")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture(autouse=True)
def _random_state_of_other_tests() -> Iterator[None]:
    state = random_state()
    yield
    restore_random_state(state)


def saved(plan: Plan, folder: RunFolder, step: int, **engine: Any) -> Path:
    stub: Any = StubEngine(**engine)
    return save_checkpoint(stub, plan=plan, folder=folder, step=step)


def contents(path: Path) -> dict[str, bytes]:
    return {str(entry.relative_to(path)): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}


def names(folder: RunFolder) -> list[str]:
    return sorted(entry.name for entry in folder.checkpoints.iterdir())


def refused(path: Path, plan: Plan) -> str:
    """The complaint; always about this checkpoint, by its path."""
    with pytest.raises(ConfigError) as caught:
        check_checkpoint(path, plan=plan)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def draws() -> list[Any]:
    return [random.random(), np.random.rand(2).tolist(), torch.rand(2).tolist()]


def test_a_checkpoint_holds_weights_engine_random_state_and_step(plan: Plan, folder: RunFolder) -> None:
    path = saved(plan, folder, 7, state="trained")
    assert path == folder.checkpoint(7)
    assert sorted(contents(path)) == [
        "engine/optimizer.pt",
        "random/rank_00000.json",
        "random/rank_00000.safetensors",
        "state.json",
        "weights/model.safetensors",
    ]
    assert names(folder) == ["step_000007"]
    assert check_checkpoint(path, plan=plan) == 7


def test_what_was_saved_comes_back_and_random_numbers_go_on(plan: Plan, folder: RunFolder) -> None:
    path = saved(plan, folder, 7, state="trained")
    wanted = draws()
    draws()
    engine: Any = StubEngine()
    load_state(engine, path)
    assert (engine.state, draws()) == ("trained", wanted)


def test_each_rank_goes_on_with_its_own_random_numbers(plan: Plan, folder: RunFolder) -> None:
    # One rank after the other writes into the folder that the main one has made; here it is made by hand.
    part = folder.checkpoints / ".step_000007.part"
    for name in ("engine", "random"):
        (part / name).mkdir(parents=True)
    saved(plan, folder, 7, world=Rank(1))
    wanted = draws()
    assert sorted(contents(part)) == [
        "engine/optimizer.pt",
        "random/rank_00001.json",
        "random/rank_00001.safetensors",
    ]
    engine: Any = StubEngine(world=Rank(1))
    load_state(engine, part)
    assert draws() == wanted


def test_a_rank_that_is_not_the_main_one_completes_and_removes_nothing(plan: Plan, folder: RunFolder) -> None:
    for step in (1, 2):
        saved(plan, folder, step)
    part = folder.checkpoints / ".step_000003.part"
    for name in ("engine", "random"):
        (part / name).mkdir(parents=True)
    saved(plan, folder, 3, world=Rank(1))
    assert names(folder) == [".step_000003.part", "step_000001", "step_000002"]


@pytest.mark.parametrize("stage", ["save", "gather", "weights"])
def test_an_interrupted_save_leaves_the_older_checkpoints_and_no_new_one(
    plan: Plan, folder: RunFolder, stage: str
) -> None:
    older = [saved(plan, folder, step, state=f"at {step}") for step in (2, 4)]
    before = [contents(path) for path in older]
    with pytest.raises(PowerCut):
        saved(plan, folder, 6, fails_at=stage)
    assert folder.complete_checkpoints() == [2, 4]
    assert [contents(path) for path in older] == before
    assert not folder.checkpoint(6).exists()


def test_after_an_interrupted_save_the_same_step_can_be_saved_whole(plan: Plan, folder: RunFolder) -> None:
    with pytest.raises(PowerCut):
        saved(plan, folder, 6, fails_at="gather")
    left_over = folder.checkpoints / ".step_000006.part" / "engine" / "of_another_layout.pt"
    left_over.write_text("stale")
    path = saved(plan, folder, 6, state="second")
    assert names(folder) == ["step_000006"]
    assert "engine/of_another_layout.pt" not in contents(path)
    assert contents(path)["engine/optimizer.pt"] == b"second"


def test_an_interrupted_save_does_not_harm_the_checkpoint_of_the_same_step(plan: Plan, folder: RunFolder) -> None:
    path = saved(plan, folder, 0, state="first")
    before = contents(path)
    with pytest.raises(PowerCut):
        saved(plan, folder, 0, fails_at="weights")
    assert contents(path) == before


def test_a_step_that_is_saved_again_is_replaced(plan: Plan, folder: RunFolder) -> None:
    saved(plan, folder, 0, state="first")
    path = saved(plan, folder, 0, state="second")
    assert contents(path)["engine/optimizer.pt"] == b"second"
    assert names(folder) == ["step_000000"]


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [8]), (2, [6, 8]), (4, [2, 4, 6, 8]), (9, [2, 4, 6, 8])])
def test_the_newest_checkpoints_are_kept(recipe: Recipe, folder: RunFolder, keep_last: int, kept: list[int]) -> None:
    plan = recipe.plan(f"checkpoint.keep_last={keep_last}")
    for step in (2, 4, 6, 8):
        saved(plan, folder, step)
    assert folder.complete_checkpoints() == kept


def test_checkpoints_are_counted_by_number_not_by_name(plan: Plan, folder: RunFolder) -> None:
    # step_1000000 stands before step_999998 in the alphabet.
    for step in (999_998, 999_999, 1_000_000):
        saved(plan, folder, step)
    assert folder.complete_checkpoints() == [999_999, 1_000_000]


def test_only_complete_checkpoints_are_counted(folder: RunFolder) -> None:
    assert folder.complete_checkpoints() == []
    for name in (".step_000004.part", "step_000004.part", "step_12", "step_", "other", "step_000002", "step_000010"):
        (folder.checkpoints / name).mkdir(parents=True)
    (folder.checkpoints / "step_000006").write_text("a file")
    assert folder.complete_checkpoints() == [2, 10]


def test_an_unfinished_checkpoint_does_not_count_against_those_to_keep(plan: Plan, folder: RunFolder) -> None:
    saved(plan, folder, 2)
    with pytest.raises(PowerCut):
        saved(plan, folder, 4, fails_at="save")
    saved(plan, folder, 6)
    assert folder.complete_checkpoints() == [2, 6]


@pytest.mark.parametrize(
    ("key", "other", "message"),
    [
        ("world_size", 4, "world_size: the checkpoint was written with 1, the plan of this run folder says 4."),
        ("strategy", "zero2", "strategy: the checkpoint was written with 'single', the plan of this run folder says"),
        ("examples_per_microbatch", 2, "examples_per_microbatch: the checkpoint was written with 8, the plan of"),
        ("config_sha256", "f00d", "config_sha256: the checkpoint was written with '"),
    ],
)
def test_a_checkpoint_of_another_layout_or_configuration_is_refused(
    plan: Plan, folder: RunFolder, key: str, other: object, message: str
) -> None:
    path = saved(plan, folder, 7)
    complaint = refused(path, plan.model_copy(update={key: other}))
    assert complaint.startswith(message)
    assert f"the plan of this run folder says {other!r}. Restore the plan that it was started with." in complaint


def test_a_checkpoint_of_an_older_version_that_lacks_a_key_is_refused(plan: Plan, folder: RunFolder) -> None:
    path = saved(plan, folder, 7)
    state = json.loads((path / "state.json").read_text())
    del state["strategy"]
    (path / "state.json").write_text(json.dumps(state))
    assert refused(path, plan).startswith("strategy: the checkpoint was written with None, the plan of this run")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"step": 7, "world_', "Unterminated string starting at"),
        (b"\xff\xfe", "'utf-8' codec can't decode byte 0xff"),
        (b"{}", "'step'"),
        (b'{"step": "many"}', "invalid literal for int()"),
    ],
)
def test_a_damaged_state_is_named_with_what_to_do(plan: Plan, folder: RunFolder, content: bytes, reason: str) -> None:
    path = saved(plan, folder, 7)
    (path / "state.json").write_bytes(content)
    complaint = refused(path, plan)
    assert complaint.startswith(f"not a complete checkpoint ({reason}")
    assert complaint.endswith("). Remove the folder to use an older one.")


@pytest.mark.parametrize("content", ["[]", '{"step": null}', '"7"', "null"])
def test_a_state_of_another_shape_is_named_with_what_to_do(plan: Plan, folder: RunFolder, content: str) -> None:
    path = saved(plan, folder, 7)
    (path / "state.json").write_text(content)
    assert refused(path, plan).startswith("not a complete checkpoint (")


def test_a_checkpoint_without_state_or_without_folder_is_named(plan: Plan, folder: RunFolder) -> None:
    path = saved(plan, folder, 7)
    (path / "state.json").unlink()
    assert "No such file or directory" in refused(path, plan)
    shutil.rmtree(path)
    assert "No such file or directory" in refused(path, plan)
