"""Evaluation examples: always the same ones, and exactly the ids that the model is given."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trainer.config.data_schema import TaskSection
from trainer.config.errors import DataError
from trainer.data.examples import renderer
from trainer.data.sources import BadExamples, read_rows
from trainer.data.tokenize import PromptEncoder
from trainer.evaluation.examples import EvaluationData, EvaluationExample, Selection
from trainer.evaluation.prepare import Prepared, prepare_capability
from trainer.evaluation.suite import EvaluationTask
from trainer.evaluation.suite_schema import SuiteTask

BOS, EOS = 0, 1
CONTEXT_TOKENS = 64
ALL = 1000


def encoder_of(*, puts_bos: bool = True) -> PromptEncoder:
    """One id a byte, after <s> and </s>."""
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    around = "<s> $A" if puts_bos else "$A"
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", BOS)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return PromptEncoder(fast)


ENCODER = encoder_of()


def task_of(path: Path, **fields: Any) -> EvaluationTask:
    spec = {"kind": "text", "data": str(path), "prompt": "{{ q }}", "response": "{{ a }}", **fields}
    names = dict.fromkeys(("name", "capability", "examples"), "quiz")
    return EvaluationTask(**names, group="base", spec=SuiteTask.model_validate(spec))


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def built(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    context_tokens: int = CONTEXT_TOKENS,
    max_examples: int = ALL,
    encoder: PromptEncoder = ENCODER,
    **fields: Any,
) -> EvaluationData:
    """What is chosen of rows that are shown one after the other."""
    task = task_of(written(folder, rows), **fields)
    selection = Selection(task, encoder=encoder, context_tokens=context_tokens, max_examples=max_examples)
    shown = {"train": task.spec.data, "prompt": task.spec.prompt, "response": task.spec.response}
    render = renderer("quiz", TaskSection.model_validate(shown))
    for row in read_rows(task.spec.data, columns={}, bad=BadExamples("error")):
        selection.consider(row, render(row.values, where=row.where))()
    if selection.repeated:
        raise DataError(selection.repeated[0])
    return selection.data()


def prepared(folder: Path, rows: list[dict[str, Any]], *tasks: dict[str, Any], **options: Any) -> Prepared:
    """All that is measured of one capability, made once and kept."""
    fixed = {"encoder": ENCODER, "processes": 1, "say": print, "timeout_seconds": 60.0, "source_key": "its content"}
    fixed |= {"context_tokens": CONTEXT_TOKENS, "max_examples": ALL, "on_bad_example": "error"}
    measured = [task_of(written(folder, rows), **fields) for fields in tasks or ({},)]
    return prepare_capability(folder / "cache", measured, **{**fixed, **options})


def only(folder: Path, row: dict[str, Any], **arguments: Any) -> EvaluationExample:
    (example,) = built(folder, [row], **arguments).examples
    return example


def refused(folder: Path, rows: list[dict[str, Any]], *, by: Callable[..., object] = built, **arguments: Any) -> str:
    """The complaint, the folder left out."""
    with pytest.raises(DataError) as caught:
        by(folder, rows, **arguments)
    return str(caught.value).replace(f"{folder}/", "")


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"id": f"row-{number}", "q": f"q{number}", "a": f"a{number}"} for number in range(count)]


def by_hash(rows: list[dict[str, Any]]) -> list[str]:
    return sorted((row["id"] for row in rows), key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def chosen_ids(data: EvaluationData) -> list[str]:
    return [example.example_id for example in data.examples]


def test_examples_are_chosen_by_the_hash_of_their_id(tmp_path: Path) -> None:
    assert chosen_ids(built(tmp_path, numbered(50), max_examples=20)) == by_hash(numbered(50))[:20]
    assert by_hash(numbered(50)) != [row["id"] for row in numbered(50)]


def test_a_smaller_choice_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    larger = built(tmp_path, numbered(50), max_examples=20)
    assert built(tmp_path, numbered(50), max_examples=10).examples == larger.examples[:10]
    assert len(built(tmp_path, numbered(50)).examples) == 50


def test_the_choice_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    rows = numbered(50)
    before = built(tmp_path, rows, max_examples=20)
    random.Random(5).shuffle(rows)
    assert built(tmp_path, rows, max_examples=20).examples == before.examples


def test_new_rows_leave_the_order_of_the_old_ones(tmp_path: Path) -> None:
    old = chosen_ids(built(tmp_path, numbered(30)))
    assert [name for name in chosen_ids(built(tmp_path, numbered(60))) if name in old] == old


def test_an_id_that_comes_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    rows = [*numbered(3), {"id": "row-1", "q": "x", "a": "y"}]
    assert refused(tmp_path, rows) == "rows.jsonl:4: id 'row-1' is also at rows.jsonl:2."
    twice = [{"id": 7, "q": "x", "a": "y"}, {"id": "7", "q": "x", "a": "y"}]
    assert refused(tmp_path, twice) == "rows.jsonl:2: id '7' is also at rows.jsonl:1."


def test_a_repeated_id_is_refused_where_it_is_chosen_however_late_it_comes(tmp_path: Path) -> None:
    chosen = by_hash(numbered(30))[0]
    others = [row for row in numbered(30) if row["id"] != chosen]
    assert f"id {chosen!r} is also at" in refused(tmp_path, numbered(30) * 2, max_examples=1)
    assert chosen_ids(built(tmp_path, numbered(30) + others, max_examples=1)) == [chosen]


def test_a_missing_column_is_told_with_its_line(tmp_path: Path) -> None:
    message = refused(tmp_path, [{"q": "x", "a": "y"}, {"q": "x"}], by=prepared)
    assert message.startswith("rows.jsonl:2: missing column a, which data.tasks.quiz.response uses.")


def test_bad_rows_of_all_kinds_are_told_together_or_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*numbered(3), {"q": "x"}, {"id": "row-1", "q": "x", "a": "y"}]
    lines = refused(tmp_path, rows, by=prepared).splitlines()
    assert [line[:22] for line in lines] == ["rows.jsonl:4: missing ", "rows.jsonl:5: id 'row-"]
    found = prepared(tmp_path, rows, on_bad_example="skip")
    assert (found.num_bad, chosen_ids(found.data[0])) == (2, by_hash(rows[:3]))


def test_two_examples_are_the_least_to_compare(tmp_path: Path) -> None:
    message = "rows.jsonl: one example of quiz: wanted at least 2 to compare."
    assert refused(tmp_path, numbered(1), by=prepared) == message
    assert len(prepared(tmp_path, numbered(2)).data[0].examples) == 2


def test_what_was_prepared_comes_back_from_its_files_as_it_was_chosen(tmp_path: Path) -> None:
    rows = [{**row, "c": [row["a"], "caf\u00e9"]} for row in numbered(20)]
    kinds = [{}, {"kind": "choice", "choices_column": "c"}, {"kind": "generate", "max_new_tokens": 3}]
    first = prepared(tmp_path, rows, *kinds, max_examples=8)
    again = prepared(tmp_path, rows[:1], *kinds, max_examples=8)  # kept: the file is not read again
    wanted = [built(tmp_path, rows, max_examples=8, **kind).examples for kind in kinds]
    assert [data.examples for data in first.data] == [data.examples for data in again.data] == wanted
    lines = (first.folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)[:2] for line in lines] == [["quiz", name] for name in by_hash(rows)[:8]]


def test_a_text_is_given_as_prompt_and_measured_as_response(tmp_path: Path) -> None:
    example = only(tmp_path, {"id": "x", "q": "ab", "a": " cd\n"})
    assert (example.prompt, example.target, example.candidates) == ("ab", " cd\n", (" cd\n",))
    assert example.prompt_ids == (BOS, *ENCODER.text_ids("ab"))
    assert example.candidate_ids == (tuple(ENCODER.text_ids(" cd\n")),)


def test_the_end_of_text_is_measured_only_where_it_was_asked_for_and_only_in_texts(tmp_path: Path) -> None:
    row = {"q": "x", "a": "a"}
    assert only(tmp_path, row, end_of_text=True).candidate_ids == ((*ENCODER.text_ids("a"), EOS),)
    choice = only(tmp_path, row, kind="choice", choices=["a", "b"], end_of_text=True)
    assert choice.candidate_ids == (tuple(ENCODER.text_ids("a")), tuple(ENCODER.text_ids("b")))


def test_a_text_without_prompt_begins_with_the_start_token_alone(tmp_path: Path) -> None:
    row = {"q": "", "a": "abc"}
    assert only(tmp_path, row).prompt_ids == (BOS,)
    assert only(tmp_path, row, encoder=encoder_of(puts_bos=False)).prompt_ids == ()


def test_candidates_take_the_white_space_before_the_response(tmp_path: Path) -> None:
    row = {"q": "x", "a": "good"}
    bare = only(tmp_path, row, kind="choice", choices=["good", " bad "])
    assert (bare.target, bare.candidates) == ("good", ("good", "bad"))
    led = only(tmp_path, row, kind="choice", choices=["good", " bad "], response="\n {{ a }}")
    assert (led.target, led.candidates) == ("\n good", ("\n good", "\n bad"))
    assert led.candidate_ids == tuple(tuple(ENCODER.text_ids(text)) for text in ("\n good", "\n bad"))


def test_candidates_of_a_column_keep_their_order_and_may_be_numbers(tmp_path: Path) -> None:
    row = {"q": "x", "right": 1, "options": [3, 12, 5]}
    fields = {"kind": "choice", "choices_column": "options", "response": " {{ options[right] }}"}
    example = only(tmp_path, row, **fields)
    assert (example.target, example.candidates) == (" 12", (" 3", " 12", " 5"))


def test_a_right_answer_that_is_no_candidate_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [{"q": "x", "a": "good"}, {"q": "x", "a": "Good"}]
    assert refused(tmp_path, rows, kind="choice", choices=["good", "bad"]) == (
        "rows.jsonl:2: the right answer 'Good' is not among the candidates ('good', 'bad')."
    )


@pytest.mark.parametrize(("value", "found"), [("a, b", "'a, b'"), (None, "None"), ({"a": 1}, "{'a': 1}")])
def test_a_column_of_candidates_must_hold_a_list(tmp_path: Path, value: object, found: str) -> None:
    message = refused(tmp_path, [{"q": "x", "a": "a", "c": value}], kind="choice", choices_column="c")
    assert message == f"rows.jsonl:1: column 'c': found {found}, wanted a list of candidates."
    missing = refused(tmp_path, [{"q": "x", "a": "a"}], kind="choice", choices_column="c")
    assert missing == "rows.jsonl:1: column 'c': found None, wanted a list of candidates."


def test_an_empty_candidate_is_refused_with_its_line(tmp_path: Path) -> None:
    row = {"q": "x", "a": "a", "c": ["a", ""]}
    assert refused(tmp_path, [row], kind="choice", choices_column="c").startswith("rows.jsonl:1: ")


def test_a_generated_answer_has_no_candidate(tmp_path: Path) -> None:
    example = only(tmp_path, {"q": "ab", "a": "cd"}, kind="generate")
    assert (example.candidates, example.candidate_ids, example.target) == ((), (), "cd")
    assert example.prompt_ids == (BOS, *ENCODER.text_ids("ab"))


def test_over_long_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    # <s> + prompt of 2 + response of 1, 5, 6, 9: 4, 8, 9, 12 tokens against 8.
    rows = [{"id": length, "q": "qq", "a": "a" * length} for length in (1, 5, 6, 9)]
    data = built(tmp_path, rows, context_tokens=8)
    assert ({*chosen_ids(data)}, data.num_dropped_overlength) == ({"1", "5"}, 2)


def test_a_choice_fits_only_with_its_longest_candidate(tmp_path: Path) -> None:
    # <s> + prompt of 2 + longest candidate of 4 = 7.
    row = {"q": "qq", "a": "a"}
    fields = {"kind": "choice", "choices": ["a", "bbbb"]}
    assert len(built(tmp_path, [row], context_tokens=7, **fields).examples) == 1
    assert "fits" in refused(tmp_path, [row], context_tokens=6, **fields)


def test_a_generated_answer_needs_room_for_all_its_tokens(tmp_path: Path) -> None:
    # <s> + prompt of 2 + 5 new tokens = 8.
    row = {"q": "qq", "a": "a"}
    fields = {"kind": "generate", "max_new_tokens": 5}
    assert len(built(tmp_path, [row], context_tokens=8, **fields).examples) == 1
    assert refused(tmp_path, [row], context_tokens=7, **fields).endswith("of quiz fits the model's 7 tokens.")


@pytest.mark.parametrize(("places", "num_chosen"), [(5, 5), (20, 20), (21, 20)])
def test_over_long_examples_use_up_no_place_and_are_counted_up_to_the_last_chosen(
    tmp_path: Path, places: int, num_chosen: int
) -> None:
    # 20 of 40 fit. With 20 places, too, those that come after the last chosen one had no chance; with 21 all had.
    rows = [{**row, "a": "a" if number % 2 else "long" * 20} for number, row in enumerate(numbered(40))]
    chosen = by_hash(rows[1::2])[:places]
    num_before = len(rows) if places > num_chosen else by_hash(rows).index(chosen[-1]) + 1
    for order in (rows, rows[::-1], rows[::2] + rows[1::2]):
        data = built(tmp_path, order, max_examples=places)
        assert (chosen_ids(data), data.num_dropped_overlength) == (chosen, num_before - num_chosen)


def test_the_hash_changes_with_one_byte_of_the_prompt_or_of_a_candidate(tmp_path: Path) -> None:
    row = {"q": "what", "a": "a", "c": ["a", "b"]}
    fields = {"kind": "choice", "choices_column": "c"}
    changes = [{}, {"q": "what "}, {"q": "What"}, {"c": ["a", "c"]}, {"c": ["b", "a"]}, {"c": ["a", "b", "b"]}]
    hashes = [only(tmp_path, row | change, **fields).prompt_sha256 for change in changes]
    assert len(set(hashes)) == len(changes)
    assert only(tmp_path, dict(row), **fields).prompt_sha256 == hashes[0]


def test_the_hash_knows_where_the_prompt_ends(tmp_path: Path) -> None:
    cut_late = only(tmp_path, {"q": "ab", "a": "c"})
    cut_early = only(tmp_path, {"q": "a", "a": "bc"})
    assert cut_late.prompt_ids + cut_late.candidate_ids[0] == cut_early.prompt_ids + cut_early.candidate_ids[0]
    assert cut_late.prompt_sha256 != cut_early.prompt_sha256


def test_the_hash_of_an_example_is_the_same_on_every_machine(tmp_path: Path) -> None:
    # "!" and "#" are bytes 0 and 2 of the alphabet (ids 2 and 4), after <s> = 0 and </s> = 1.
    assert only(tmp_path, {"q": "!", "a": "#"}).prompt_sha256 == hashlib.sha256(b"[[0, 2], [[4]]]").hexdigest()


def test_an_example_that_one_measure_refuses_is_in_none_of_them(tmp_path: Path) -> None:
    rows = [{**row, "a": "x" if number == 2 else "a"} for number, row in enumerate(numbered(4))]
    for kinds in (("text", "choice"), ("choice", "text")):
        measures = [{"kind": kind, **({"choices": ["a", "b"]} if kind == "choice" else {})} for kind in kinds]
        found = prepared(tmp_path, rows, *measures, on_bad_example="skip")
        assert ([len(data.examples) for data in found.data], found.num_bad) == ([3, 3], 1)
