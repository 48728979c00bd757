"""Tasks of lm-evaluation-harness that cannot be measured rightly, each refused in one clear line."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.recipe import Recipe
from tests.unit.test_lm_eval_source import ANSWER, CHOICE, CONTINUATION, Doc, docs, local_task, rows_of, source_of
from trainer.config.data_schema import LmEvalSource
from trainer.config.errors import ConfigError, DataError
from trainer.config.load import load_as
from trainer.data.sources import BadExamples, read_rows
from trainer.evaluation.suite_schema import Suite

pytest.importorskip("lm_eval", reason="needs pip install 'retain[lm-eval]'")

IN_CONTEXT = {**CHOICE, "doc_to_text": "{{right}}", "doc_to_choice": "{{options}}", "doc_to_target": "fits"}
UNLABELLED = [{**doc, "right": -1} for doc in docs(3)]
SEVERAL = {**ANSWER, "doc_to_target": "{{options}}"}


@pytest.mark.parametrize(
    ("fields", "documents", "message"),
    [
        (IN_CONTEXT, docs(3), "its options stand in the context, not after it"),
        (
            {**CONTINUATION, "output_type": "loglikelihood_rolling"},
            docs(3),
            "output_type loglikelihood_rolling; wanted",
        ),
        ({**CHOICE, "doc_to_image": "q"}, docs(3), "pictures or sound"),
        (
            {**CHOICE, "process_results": "!function functions.f", "functions": "def f(doc, results): return {}"},
            docs(3),
            "code of its own",
        ),
        (CHOICE, UNLABELLED, r"no document can be used, of 3\. First: .*document 0: no label: its target is '-1', not"),
        (
            {**CHOICE, "doc_to_target": "right"},
            UNLABELLED,
            "document 0: no label: its target is -1, not one of 3 options",
        ),
        ({**ANSWER, "doc_to_target": ""}, docs(3), "document 0: no label: its target is empty"),
        ({**CONTINUATION, "doc_to_target": " "}, docs(3), "document 0: no label: nothing to continue with"),
        (
            {**CONTINUATION, "doc_to_target": "options"},
            docs(3),
            "document 0: its target is .*, not one text to continue",
        ),
        (SEVERAL, docs(3), "document 0: 3 right answers, and an answer is compared with one"),
        ({**CHOICE, "doc_to_target": "{{[right, 0]}}"}, docs(3), "document 0: 2 right options, and one can be chosen"),
        ({**CHOICE, "doc_to_text": ""}, docs(3), "document 0: nothing stands in front of the options"),
        ({**CHOICE, "doc_to_choice": ["a ", "b", "c"]}, docs(3), "white space around its options differs"),
        ({**CHOICE, "doc_to_choice": [" a", "b", "c"]}, docs(3), "white space around its options differs"),
        (
            {**CHOICE, "doc_to_text": "{{q.absent.more}}"},
            docs(3),
            r"cannot load it \(UndefinedError: .*load\('sums'\)\"",
        ),
        ({**CHOICE, "test_split": "absent"}, docs(3), "cannot load it .KeyError: 'absent'.*where there is network"),
    ],
)
def test_what_cannot_be_measured_rightly_is_refused_in_one_line(
    fields: dict[str, Any], documents: list[Doc], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        rows_of(source_of(local_task(tmp_path, fields, documents)))
    assert str(caught.value).startswith("lm-eval sums: ")
    assert "\n" not in str(caught.value)


def test_a_single_document_without_a_label_is_a_bad_example(tmp_path: Path) -> None:
    source = source_of(local_task(tmp_path, CHOICE, [*docs(2), UNLABELLED[0]]))
    skipped = BadExamples("skip")
    assert len(list(read_rows(source, columns={}, bad=skipped))) == 2
    assert skipped.finish("rows") == 1
    with pytest.raises(DataError, match=r"^lm-eval sums: document 2: no label: its target is '?-1'?, not one of 3"):
        rows_of(source)


def test_data_that_is_damaged_or_too_few_to_draw_from_is_refused(tmp_path: Path) -> None:
    folder = local_task(tmp_path / "damaged", CHOICE, docs(3))
    (folder / "test.jsonl").write_text('{"q": \n')
    with pytest.raises(DataError, match=r"^lm-eval sums: ") as caught:
        rows_of(source_of(folder))
    assert "\n" not in str(caught.value)
    folder = local_task(tmp_path / "few", CHOICE, docs(3), solved=docs(2, first=50))
    with pytest.raises(DataError, match=r"document 0: lm-eval cannot put it into words \(ValueError: Sample larger"):
        rows_of(source_of(folder, num_fewshot=5))


def test_a_group_is_refused_with_its_tasks(tmp_path: Path) -> None:
    folder = local_task(tmp_path, CHOICE, docs(3))
    (folder / "group.yaml").write_text("group: all_sums\ntask: [sums, {task: other}]\n")
    with pytest.raises(DataError, match=r"^lm-eval all_sums: a group of tasks; name one of them: sums, other\.$"):
        rows_of(LmEvalSource(lm_eval="all_sums", include_path=str(folder)))


def test_an_unknown_task_or_folder_is_refused_with_the_nearest_names(tmp_path: Path) -> None:
    folder = local_task(tmp_path, CHOICE, docs(3))
    with pytest.raises(DataError, match=rf"no such task in lm-eval [\d.]+ and {folder} .*Did you mean .*\bsums\b"):
        rows_of(LmEvalSource(lm_eval="sumss", include_path=str(folder)))
    with pytest.raises(DataError, match=r"^lm-eval arc_esy: no such task in lm-eval [\d.]+ \(\d+ tasks\).*arc_easy"):
        rows_of(LmEvalSource(lm_eval="arc_esy"))
    with pytest.raises(DataError, match=r"^lm-eval ai2_arc: a group of tasks; .*: arc_challenge, arc_easy\.$"):
        rows_of(LmEvalSource(lm_eval="ai2_arc"))
    with pytest.raises(DataError, match="include_path: no such folder: absent"):
        rows_of(LmEvalSource(lm_eval="sums", include_path="absent"))


def test_without_lm_eval_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(DataError, match=r"^lm-eval sums: lm-eval is not installed .*pip install 'retain\[lm-eval\]'$"):
        rows_of(source_of(tmp_path))


@pytest.mark.parametrize("key", ["train", "heldout"])
def test_a_task_of_lm_eval_is_never_trained_on(key: str, recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.tasks\.ner\.{key}: found a task of lm-eval \(arc_easy\)") as caught:
        recipe.plan(f"data.tasks.ner.{key}={{lm_eval: arc_easy}}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (
            "{lm_eval: arc_easy, num_fewshots: 5}",
            "num_fewshots: unknown key. Did you mean num_fewshot? Keys here: ",
        ),
        ("{lm_eval: arc_easy, num_fewshot: -1}", "num_fewshot: found -1, wanted greater than or equal to 0."),
        ("{num_fewshot: 5}", "lm_eval: missing. Keys here: include_path, lm_eval, num_fewshot, seed."),
        ("{hub: org/x, splitt: test}", "splitt: unknown key. Did you mean split? Keys here: hub,"),
        ("{lm_evil: arc_easy, seed: 3}", "lm_evil: unknown key. Did you mean lm_eval?"),
        ("[a.jsonl, 3]", "found 3 in a list, wanted paths."),
        ("3", "found 3, wanted a path, a list of paths, or a mapping with hub or lm_eval."),
    ],
)
def test_a_wrong_source_is_one_complaint_about_the_form_that_was_meant(
    data: str, complaint: str, tmp_path: Path
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"tasks:\n  t:\n    kind: text\n    response: x\n    data: {data}\n")
    with pytest.raises(ConfigError) as caught:
        load_as(Suite, suite, variables={})
    assert str(caught.value).startswith(f"{suite}:5: tasks.t.data: {complaint}")
    assert "\n" not in str(caught.value)
