"""Tasks of lm-evaluation-harness as rows: what lm-eval itself would ask, and the answers it would find.

All tasks are local files. What lm-eval asks is what `build_all_requests` of its own task makes.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.config.data_schema import LmEvalSource
from trainer.config.errors import DataError
from trainer.data.fingerprint import Fingerprints
from trainer.data.sources import BadExamples, read_rows

pytest.importorskip("lm_eval", reason="needs pip install 'retain[lm-eval]'")

Doc = dict[str, Any]
SEED = 1234
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{q}}\nA:",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{right}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ANSWER = {
    "output_type": "generate_until",
    "doc_to_text": "Q: {{q}}\nA:",
    "doc_to_target": "{{options[right]}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CONTINUATION = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{q}}",
    "doc_to_target": " {{options[right]}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def docs(count: int, *, first: int = 0) -> list[Doc]:
    return [
        {"q": f"What is {n} + 1?", "options": [f"it is {n + 1}", f"it is {n - 1}", "none of them"], "right": n % 3}
        for n in range(first, first + count)
    ]


def local_task(
    folder: Path, fields: Mapping[str, Any], documents: Sequence[Doc], *, solved: Sequence[Doc] = ()
) -> Path:
    """A folder with the task `sums` and its data."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"test": documents, **({"train": solved} if solved else {})}
    for part, several in parts.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in several))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {part: str(folder / f"{part}.jsonl") for part in parts},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        **({"fewshot_split": "train"} if solved else {}),
        **fields,
    }
    functions = task.pop("functions", "")
    text = "".join(f"{key}: {value}\n" for key, value in task.items() if str(value).startswith("!function"))
    plain = {key: value for key, value in task.items() if not str(value).startswith("!function")}
    (folder / "sums.yaml").write_text(yaml.safe_dump(plain) + text)
    (folder / "functions.py").write_text(functions)
    return folder


def source_of(folder: Path, **fields: Any) -> LmEvalSource:
    return LmEvalSource(lm_eval="sums", include_path=str(folder), **fields)


def rows_of(source: LmEvalSource) -> list[Doc]:
    bad = BadExamples("error")
    rows = [row.values for row in read_rows(source, columns={}, bad=bad)]
    bad.finish("rows")
    return rows


def asked_by_lm_eval(folder: Path, *, num_fewshot: int, seed: int = SEED) -> list[list[tuple[Any, ...]]]:
    """Arguments of each request of each document, as `simple_evaluate` would make them."""
    from lm_eval.tasks import TaskManager

    (task,) = TaskManager(include_path=str(folder), include_defaults=False).load("sums")["tasks"].values()
    task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(seed=seed)
    task.build_all_requests()
    found: dict[int, list[tuple[Any, ...]]] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance.args)
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("num_fewshot", [0, 3])
@pytest.mark.parametrize("description", ["", "Sums, answered.\n\n"])
def test_a_choice_is_the_context_and_continuations_that_lm_eval_asks_for(
    num_fewshot: int, description: str, tmp_path: Path
) -> None:
    fields = {**CHOICE, "description": description}
    folder = local_task(tmp_path, fields, docs(7), solved=docs(20, first=100))
    rows = rows_of(source_of(folder, num_fewshot=num_fewshot))
    asked = asked_by_lm_eval(folder, num_fewshot=num_fewshot)
    assert [[(row["prompt"], choice) for choice in row["choices"]] for row in rows] == asked
    assert [row["answer"] for row in rows] == [f" {doc['options'][doc['right']]}" for doc in docs(7)]
    assert len({row["prompt"].removesuffix(f"Q: {doc['q']}\nA:") for row, doc in zip(rows, docs(7), strict=True)}) == (
        7 if num_fewshot else 1
    )


def test_solved_examples_are_drawn_by_the_seed(tmp_path: Path) -> None:
    folder = local_task(tmp_path, CHOICE, docs(5), solved=docs(20, first=100))
    prompts = {seed: [row["prompt"] for row in rows_of(source_of(folder, num_fewshot=2, seed=seed))] for seed in (1, 2)}
    assert prompts[1] != prompts[2]
    for seed, found in prompts.items():
        asked = asked_by_lm_eval(folder, num_fewshot=2, seed=seed)
        assert found == [requests[0][0] for requests in asked]


def test_without_num_fewshot_it_is_the_tasks_own(tmp_path: Path) -> None:
    folder = local_task(tmp_path, {**CHOICE, "num_fewshot": 2}, docs(4), solved=docs(9, first=50))
    assert rows_of(source_of(folder))[0]["prompt"].count("Q: ") == 3
    assert rows_of(source_of(folder, num_fewshot=1))[0]["prompt"].count("Q: ") == 2
    folder = local_task(tmp_path / "none", {**CHOICE, "num_fewshot": 0}, docs(4), solved=docs(9, first=50))
    assert rows_of(source_of(folder))[0]["prompt"].count("Q: ") == 1
    with pytest.raises(DataError, match="lm-eval sums: num_fewshot: found 1, but the task itself says 0"):
        rows_of(source_of(folder, num_fewshot=1))


@pytest.mark.parametrize("end", [" ", "\n", "  \n"])
def test_white_space_at_the_end_of_a_context_begins_the_continuations(end: str, tmp_path: Path) -> None:
    # lm-eval's models score it there: TemplateLM._encode_pair.
    folder = local_task(tmp_path, {**CHOICE, "doc_to_text": "{{q}}" + end, "target_delimiter": ""}, docs(4))
    for row, requests in zip(rows_of(source_of(folder)), asked_by_lm_eval(folder, num_fewshot=0), strict=True):
        assert row["prompt"] == row["prompt"].rstrip()
        assert [row["prompt"] + choice for choice in row["choices"]] == ["".join(pair) for pair in requests]
        assert all(choice.startswith(end) for choice in row["choices"])
        assert row["answer"] in row["choices"]


def test_generated_and_given_texts_have_the_context_and_the_target(tmp_path: Path) -> None:
    folder = local_task(tmp_path / "answer", ANSWER, docs(4), solved=docs(9, first=50))
    rows = rows_of(source_of(folder, num_fewshot=2))
    assert [row["prompt"] for row in rows] == [one[0][0] for one in asked_by_lm_eval(folder, num_fewshot=2)]
    assert [row["answer"] for row in rows] == [doc["options"][doc["right"]] for doc in docs(4)]
    assert set(rows[0]) == {"id", "prompt", "answer"}
    folder = local_task(tmp_path / "given", CONTINUATION, docs(4))
    pairs = [(row["prompt"], row["answer"]) for row in rows_of(source_of(folder))]
    assert pairs == [requests[0] for requests in asked_by_lm_eval(folder, num_fewshot=0)]


def test_a_target_that_is_an_index_or_a_list_of_one_is_taken(tmp_path: Path) -> None:
    index = {**ANSWER, "doc_to_choice": "{{options}}", "doc_to_target": "{{right}}"}
    wanted = [doc["options"][doc["right"]] for doc in docs(4)]
    assert [row["answer"] for row in rows_of(source_of(local_task(tmp_path / "a", index, docs(4))))] == wanted
    listed = {**ANSWER, "doc_to_target": "{{[options[right]]}}"}
    assert [row["answer"] for row in rows_of(source_of(local_task(tmp_path / "b", listed, docs(4))))] == wanted
    named = {**CHOICE, "doc_to_target": "{{options[right]}}", "doc_to_text": "Say {{options[right]}}:"}
    rows = rows_of(source_of(local_task(tmp_path / "c", named, docs(3))))
    assert [row["answer"] for row in rows] == [f" {text}" for text in wanted[:3]]


def test_mutual_information_asks_twice_and_only_the_half_with_a_context_is_taken(tmp_path: Path) -> None:
    metric = {"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}
    folder = local_task(tmp_path, {**CHOICE, "metric_list": [metric]}, docs(3))
    asked = asked_by_lm_eval(folder, num_fewshot=0)
    assert [len(requests) for requests in asked] == [6, 6, 6]
    rows = rows_of(source_of(folder))
    assert [[(row["prompt"], choice) for choice in row["choices"]] for row in rows] == [one[:3] for one in asked]


def test_a_changed_document_is_another_id(tmp_path: Path) -> None:
    old = rows_of(source_of(local_task(tmp_path / "old", CHOICE, docs(3))))
    changed = [*docs(2), {**docs(3)[2], "options": ["3", "2", "7"]}]
    new = rows_of(source_of(local_task(tmp_path / "new", CHOICE, changed)))
    assert [row["id"].split("-")[0] for row in old] == ["0", "1", "2"]
    assert [a["id"] == b["id"] for a, b in zip(old, new, strict=True)] == [True, True, False]


def test_the_fingerprint_is_of_what_is_asked(tmp_path: Path) -> None:
    prints = Fingerprints(tmp_path / "memory")
    more = docs(20, first=100)
    folder = local_task(tmp_path / "one", CHOICE, docs(4), solved=more)
    first = prints.source(source_of(folder, num_fewshot=2))
    assert first == prints.source(source_of(folder, num_fewshot=2))
    assert first == prints.source(
        source_of(local_task(tmp_path / "moved", CHOICE, docs(4), solved=more), num_fewshot=2)
    )
    others = [
        source_of(folder, num_fewshot=1),
        source_of(folder, num_fewshot=2, seed=5),
        source_of(local_task(tmp_path / "docs", CHOICE, docs(4, first=1), solved=more), num_fewshot=2),
        source_of(local_task(tmp_path / "solved", CHOICE, docs(4), solved=more[::-1]), num_fewshot=2),
        source_of(local_task(tmp_path / "words", {**CHOICE, "description": "x"}, docs(4), solved=more), num_fewshot=2),
    ]
    found = [first, *map(prints.source, others)]
    assert len(set(map(tuple, found))) == len(found)


def test_a_task_that_draws_at_random_is_the_same_at_every_reading(tmp_path: Path) -> None:
    shuffle = "import random\n\ndef shuffled(docs):\n    order = list(range(len(docs)))\n    random.shuffle(order)\n"
    shuffle += "    return docs.select(order)\n"
    fields = {**CHOICE, "process_docs": "!function functions.shuffled", "functions": shuffle}
    source = source_of(local_task(tmp_path, fields, docs(30)))
    random.seed(7)
    state = random.getstate()
    first = rows_of(source)
    assert random.getstate() == state
    random.seed(8)
    assert rows_of(source) == first
    assert [row["prompt"] for row in first] != [f"Q: {doc['q']}\nA:" for doc in docs(30)]
