"""The plan: the same question gets the same answer, every choice has a reason, and what cannot work is refused."""

import math
from pathlib import Path

import pytest

from launch.machine import Machine
from tests.recipe import TINY_SHAPES, Recipe, write_large_model, write_model
from trainer.config.errors import ConfigError
from trainer.config.plan import Plan, read_plan

GIB = 2**30
ONE_GPU = (80 * GIB,)
FOUR_GPUS = (80 * GIB,) * 4


def refusal(recipe: Recipe, *overrides: str, machine: Machine | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe.plan(*overrides, machine=machine)
    return str(caught.value)


def reason(plan: Plan, field: str) -> tuple[str, str]:
    """What was used for a field that was left to the plan, and why."""
    (decision,) = [decision for decision in plan.decisions if decision.field == field]
    return decision.used, decision.reason


def test_the_same_configuration_on_the_same_machine_gives_the_same_plan(recipe: Recipe) -> None:
    machine = recipe.machine(*FOUR_GPUS)
    assert recipe.plan(machine=machine).to_json() == recipe.plan(machine=machine).to_json()


def test_planning_writes_nothing(recipe: Recipe) -> None:
    def listing() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in recipe.folder.rglob("*"))

    before = listing()
    recipe.plan()
    assert listing() == before


def test_a_machine_without_gpu_runs_one_process_on_the_cpu(recipe: Recipe) -> None:
    plan = recipe.plan()
    assert (plan.device, plan.world_size, plan.strategy) == ("cpu", 1, "single")
    assert reason(plan, "layout.device") == ("cpu", "no NVIDIA GPU is visible")
    assert plan.argv[1:] == ("-m", "trainer.worker", str(recipe.folder / "run" / "plan.json"))


def test_one_gpu_runs_one_process_on_it(recipe: Recipe) -> None:
    plan = recipe.plan(machine=recipe.machine(*ONE_GPU))
    assert (plan.device, plan.world_size, plan.strategy) == ("cuda", 1, "single")


def test_every_gpu_gets_a_rank(recipe: Recipe) -> None:
    plan = recipe.plan(machine=recipe.machine(*FOUR_GPUS))
    assert (plan.device, plan.world_size, plan.strategy) == ("cuda", 4, "ddp")
    assert reason(plan, "layout.device") == ("cuda", "4 GPU(s) visible")
    assert "--nproc-per-node=4" in plan.argv


def test_what_was_asked_for_is_no_decision(recipe: Recipe) -> None:
    asked = ("layout.strategy=zero2", "layout.processes=2", "layout.device=cpu", "training.examples_per_device=4")
    also = ("training.activation_checkpointing=false", "evaluation.examples_per_batch=8")
    assert recipe.plan(*asked, *also).decisions == ()


def test_a_cpu_run_hides_the_gpus_and_shares_the_cores(recipe: Recipe) -> None:
    plan = recipe.plan("layout.device=cpu", "layout.processes=2", machine=recipe.machine(*ONE_GPU))
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert plan.environment["DS_ACCELERATOR"] == "cpu"
    assert plan.environment["OMP_NUM_THREADS"] == "4"  # 8 cores / 2 ranks


def test_a_gpu_run_leaves_the_users_choice_of_gpus_alone(recipe: Recipe) -> None:
    environment = recipe.plan(machine=recipe.machine(*ONE_GPU)).environment
    assert {"CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"} & set(environment) == set()
    assert environment["HF_HUB_OFFLINE"] == "1"


def total_bytes(recipe: Recipe, strategy: str, *overrides: str) -> int:
    """What a rank of four needs under a strategy, on GPUs of any size."""
    machine = recipe.machine(*[10**15] * 4)
    return recipe.plan(f"layout.strategy={strategy}", *overrides, machine=machine).memory.total_bytes


@pytest.fixture
def large(recipe: Recipe) -> str:
    """Override that takes a model of 671 million parameters: states, not buffers, decide about its strategy."""
    return f"model.path={write_large_model(recipe.folder / 'large')}"


def test_the_simplest_strategy_that_fits_is_chosen(recipe: Recipe, large: str) -> None:
    strategies = ("ddp", "zero1", "zero2", "zero3")
    needs = [total_bytes(recipe, strategy, large) for strategy in strategies]
    assert needs == sorted(needs, reverse=True)
    for strategy, need in zip(strategies, needs, strict=True):
        # 90 % of a device may be used.
        enough = math.ceil(need / 0.9) + 1
        plan = recipe.plan(large, machine=recipe.machine(*[enough] * 4))
        used, why = reason(plan, "layout.strategy")
        assert (used, plan.strategy, plan.memory.total_bytes) == (strategy, strategy, need)
        assert "(90% of a device)" in why


def test_what_fits_nowhere_is_refused_with_the_numbers(recipe: Recipe, large: str) -> None:
    smallest = total_bytes(recipe, "zero3", large)
    machine = recipe.machine(*[int(smallest / 0.9) - 1000] * 4)
    message = refusal(recipe, large, machine=machine)
    assert message.startswith("layout: ")
    assert f"needs {smallest / GIB:.2f} GiB a rank (zero3" in message


def test_the_smallest_gpu_decides(recipe: Recipe, large: str) -> None:
    enough = math.ceil(total_bytes(recipe, "zero2", large) / 0.9) + 1
    assert recipe.plan(large, machine=recipe.machine(80 * GIB, enough, 80 * GIB, 80 * GIB)).strategy == "zero2"


def test_ranks_on_a_cpu_share_its_memory(recipe: Recipe, large: str) -> None:
    on_cpu = ("layout.device=cpu", "layout.processes=4", large)
    need = recipe.plan(*on_cpu, "layout.strategy=zero2", machine=recipe.machine(memory_bytes=10**15)).memory.total_bytes
    machine = recipe.machine(memory_bytes=4 * (math.ceil(need / 0.9) + 1))
    assert recipe.plan(*on_cpu, machine=machine).strategy == "zero2"


def test_memory_that_was_asked_for_replaces_that_of_the_device(recipe: Recipe, large: str) -> None:
    gib = total_bytes(recipe, "zero1", large) / 0.9 / GIB + 0.001
    plan = recipe.plan(large, f"layout.memory_per_device_gib={gib}", machine=recipe.machine(*FOUR_GPUS))
    assert plan.strategy == "zero1"


def test_lora_counts_rank_times_in_plus_out_of_each_adapted_matrix(recipe: Recipe) -> None:
    # All linear layers of the model, (out, in), without the embedding:
    #   q 8+8, k 4+8, v 4+8, o 8+8, up 16+8, down 8+16: 16 + 12 + 12 + 16 + 24 + 24 = 104; rank 3: 312.
    plan = recipe.plan("method=lora", "lora.rank=3")
    assert plan.memory.num_trainable_parameters == 312
    assert plan.memory.num_parameters == 720 + 312
    # single, fp32: 1032 weights of 4 bytes, 312 gradients of 4 and 312 pairs of moments of 8: 4128 + 1248 + 2496.
    assert plan.memory.model_state_bytes == 7872


def test_lora_on_named_layers_counts_only_these(recipe: Recipe) -> None:
    # q 8+8 and v 4+8: 28; rank 2: 56. The bias of q is not a matrix.
    plan = recipe.plan("method=lora", "lora.rank=2", "lora.targets=[q_proj, v_proj]")
    assert plan.memory.num_trainable_parameters == 56


def test_an_unknown_lora_target_is_told_with_the_layers_that_exist(recipe: Recipe) -> None:
    message = refusal(recipe, "method=lora", "lora.targets=[query]")
    assert message.startswith("lora.targets: found ('query',), but the model has no such layer.")
    assert message.endswith("down_proj, embed_tokens, k_proj, o_proj, q_proj, up_proj, v_proj.")


@pytest.mark.parametrize(
    ("total", "ranks", "microbatch", "microbatches"),
    [
        (8, 1, 8, 1),
        (64, 1, 16, 4),  # 64 = 4 * 16
        (64, 2, 16, 2),  # 32 a rank = 2 * 16
        (34, 1, 2, 17),  # divisors of 34: 1, 2, 17, 34; the largest up to 16 is 2
        (30, 1, 15, 2),
        (17, 1, 1, 17),
        (4, 4, 1, 1),
    ],
)
def test_a_micro_batch_is_the_largest_divisor_up_to_16(
    recipe: Recipe, total: int, ranks: int, microbatch: int, microbatches: int
) -> None:
    plan = recipe.plan(f"training.examples_per_step={total}", f"layout.processes={ranks}")
    assert (plan.examples_per_microbatch, plan.microbatches_per_step) == (microbatch, microbatches)
    assert plan.examples_per_microbatch * plan.microbatches_per_step * ranks == total


def test_a_micro_batch_that_was_asked_for_sets_the_accumulation(recipe: Recipe) -> None:
    plan = recipe.plan("training.examples_per_device=2", "layout.processes=2")
    assert (plan.examples_per_microbatch, plan.microbatches_per_step) == (2, 2)  # 8 = 2 ranks * 2 * 2


@pytest.mark.parametrize(
    ("total", "message"),
    [
        (10, "training.examples_per_step: found 10, which does not divide by 4 ranks. Set it to 8 or 12, or change"),
        (3, "training.examples_per_step: found 3, which does not divide by 4 ranks. Set it to 4, or change"),
    ],
)
def test_a_batch_that_does_not_divide_by_the_ranks_is_told_with_the_next_that_do(
    recipe: Recipe, total: int, message: str
) -> None:
    found = refusal(recipe, f"training.examples_per_step={total}", "layout.processes=4")
    assert found.startswith(message)


def test_a_batch_that_does_not_divide_into_micro_batches_is_told_with_those_that_do(recipe: Recipe) -> None:
    assert refusal(recipe, "training.examples_per_device=3", "layout.processes=2") == (
        "training.examples_per_device: found 3, but each rank's 4 examples a step (8 / 2 ranks) do not divide by it. "
        "Set it to one of 1, 2, 4."
    )


def test_cuda_without_gpu_is_refused(recipe: Recipe) -> None:
    assert refusal(recipe, "layout.device=cuda") == (
        "layout.device: found cuda, but no NVIDIA GPU is visible here. Set layout.device=cpu."
    )


def test_more_processes_than_gpus_are_refused(recipe: Recipe) -> None:
    found = refusal(recipe, "layout.processes=8", machine=recipe.machine(*FOUR_GPUS))
    assert found == "layout.processes: found 8, but 4 GPU(s) are visible. Set layout.processes=4 or auto."


def test_a_single_process_cannot_be_several(recipe: Recipe) -> None:
    found = refusal(recipe, "layout.strategy=single", "layout.processes=2")
    assert found.startswith("layout.processes: found 2 with layout.strategy single, wanted 1.")


def test_single_takes_one_of_several_gpus(recipe: Recipe) -> None:
    plan = recipe.plan("layout.strategy=single", machine=recipe.machine(*FOUR_GPUS))
    assert (plan.world_size, plan.device) == (1, "cuda")


def test_a_context_that_is_too_long_is_told_with_the_limit(recipe: Recipe) -> None:
    assert refusal(recipe, "data.sequence_length_tokens=65") == (
        f"data.sequence_length_tokens: found 65, but the context of {recipe.model} is 64 tokens. Set it to 64 or less."
    )
    assert recipe.plan("data.sequence_length_tokens=64").config.data.sequence_length_tokens == 64


@pytest.mark.parametrize("trace", ["metrics.jsonl", "checkpoints/step_000002", "evaluation/step_000000"])
def test_a_folder_that_holds_an_earlier_run_is_refused(recipe: Recipe, trace: str) -> None:
    (recipe.folder / "run" / trace).mkdir(parents=True)
    message = refusal(recipe)
    assert message.startswith(f"run.folder: {recipe.folder}/run holds an earlier run.")
    assert f"retain train --resume {recipe.folder}/run" in message


def test_a_folder_with_nothing_of_a_run_in_it_is_free(recipe: Recipe) -> None:
    (recipe.folder / "run" / "logs").mkdir(parents=True)
    assert recipe.plan().run_folder == str(recipe.folder / "run")


def test_a_hub_model_in_the_cache_is_found_at_its_main_revision(recipe: Recipe) -> None:
    cached = recipe.machine().hub_cache_folder / "models--org--tiny"
    snapshot = write_model(cached / "snapshots" / "abc123", TINY_SHAPES, context_tokens=64)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc123\n")
    assert recipe.plan("model.path=org/tiny").model_folder == str(snapshot)


def test_an_unknown_model_is_told_with_the_command_that_fetches_it(recipe: Recipe) -> None:
    message = refusal(recipe, "model.path=org/tiny")
    assert message.startswith("model.path: unknown model 'org/tiny'")
    assert message.endswith("Give a model folder, or fetch it first: hf download org/tiny")


def test_a_demo_model_that_was_not_made_is_told_with_the_command_that_makes_it(recipe: Recipe) -> None:
    message = refusal(recipe, f"model.path={recipe.machine().cache_folder}/demo/models/glassllm-en")
    assert message.endswith("Make it with: retain demo --prepare-only")


@pytest.mark.parametrize("key", ["data.tasks.ner.train", "data.tasks.ner.heldout", "evaluation.suite"])
def test_a_file_that_is_missing_is_told_with_its_key(recipe: Recipe, key: str) -> None:
    assert refusal(recipe, f"{key}=gone.file").startswith(f"{key}: no such file: gone.file")


def test_a_plan_survives_json(recipe: Recipe, tmp_path: Path) -> None:
    plan = recipe.plan("method=lora", "lora.targets=[q_proj]", "data.tasks.ner.score={kind: choice, choices: [a, b]}")
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    assert read_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("damage", ["", "{}", "[]", "null", '{"schema_version": 2}', '{"config":'])
def test_a_damaged_plan_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / "plan.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"plan\.json: not a plan of this version of Retain \(.*\)\. Start") as caught:
        read_plan(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"plan\.json"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.json: cannot be read \(No such file or directory\)\. Is this a run"):
        read_plan(tmp_path / "plan.json")
