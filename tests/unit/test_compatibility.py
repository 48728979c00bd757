"""The compatibility matrix as a function: complete, with a way out of every refusal, and its page up to date."""

from pathlib import Path

from launch.compatibility import Combination, all_combinations, page, refusal

REPOSITORY = Path(__file__).resolve().parents[2]


def combination(**changes: str) -> Combination:
    plain = {
        "strategy": "single",
        "offload": "none",
        "method": "full",
        "quantisation": "none",
        "precision": "fp32",
        "objective": "causal_lm",
        "device": "cpu",
    }
    return Combination(**{**plain, **changes})  # type: ignore[arg-type]  # the tests name words of the schema


def test_every_cell_is_there_once() -> None:
    # 5 strategies * 3 offloads * 2 methods * 3 quantisations * 3 precisions * 2 objectives * 2 devices.
    cells = list(all_combinations())
    assert len(cells) == len(set(cells)) == 5 * 3 * 2 * 3 * 3 * 2 * 2


def test_the_nearest_combination_of_every_refusal_works_and_is_another_one() -> None:
    refused = [(cell, found) for cell in all_combinations() if (found := refusal(cell)) is not None]
    assert [cell for cell, found in refused if refusal(found.nearest) is not None] == []
    assert [cell for cell, found in refused if not found.advice(cell)] == []
    assert [
        cell
        for cell, found in refused
        if (found.nearest.objective, found.nearest.device) != (cell.objective, cell.device)
    ] == []


def test_the_plain_cells_work() -> None:
    assert refusal(combination()) is None
    assert refusal(combination(strategy="zero3", offload="optimizer_and_parameters", precision="bf16")) is None


def test_advice_names_only_what_changes() -> None:
    asked = combination(strategy="ddp", offload="optimizer", method="lora")
    found = refusal(asked)
    assert found is not None
    assert found.advice(asked) == "layout.strategy=zero2"


def test_a_refusal_with_several_reasons_leads_all_the_way() -> None:
    # Offload on ddp, a quantised base in full, on several ranks, in 4 bits on a CPU, and fp16 on a CPU.
    asked = combination(strategy="ddp", offload="optimizer", quantisation="int4", precision="fp16")
    found = refusal(asked)
    assert found is not None
    assert found.nearest == combination(method="lora", quantisation="int8", precision="bf16")


def test_the_page_is_what_the_function_says() -> None:
    path = REPOSITORY / "docs" / "compatibility.md"
    assert path.read_text(encoding="utf-8") == page(), "run: python -m launch.compatibility > docs/compatibility.md"
