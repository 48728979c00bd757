"""Files that lm-evaluation-harness itself wrote (0.4.13): two small models on two small local tasks.

`lm_eval_samples/before` and `after` are untouched outputs of `lm_eval run --log_samples`. What the harness printed
for them is below; other shapes are the same lines with one thing changed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from trainer.config.errors import DataError
from trainer.evaluation.capability_row import TaskDescription
from trainer.evaluation.flips import count_flips
from trainer.evaluation.forgetting import compare_task
from trainer.evaluation.join import JoinError
from trainer.evaluation.lm_eval_files import find_sample_files, read_lm_eval
from trainer.evaluation.records import ExampleRecord

SAMPLES = Path(__file__).parent / "lm_eval_samples"
BEFORE = find_sample_files(SAMPLES / "before")
AFTER = find_sample_files(SAMPLES / "after")
LATER = "2026-11-24T09-00-00"

PRINTED = [
    ("before", "endings", "acc", "none", 0.25),
    ("before", "endings", "acc_norm", "none", 0.625),
    ("after", "endings", "acc", "none", 0.125),
    ("after", "endings", "acc_norm", "none", 0.625),
    ("before", "next_word", "exact_match", "first-word", 2 / 6),
    ("before", "next_word", "exact_match", "capital", 0.0),
    ("after", "next_word", "exact_match", "first-word", 3 / 6),
]
"""Run, task, metric, filter, and the value in the harness's own table."""

ABOUT = {"name": "endings", "capability": "likely endings", "group": "base", "kind": "choice", "measure": "accuracy"}
CHOICE = TaskDescription(**ABOUT, unit="share", higher_is_better=True, margin=0.01)


def read_sample_file(file: Path, **choice: str) -> list[ExampleRecord]:
    """Records of the only task of a file."""
    (records,) = read_lm_eval(file, **choice).values()
    return records


@pytest.mark.parametrize(("run", "task", "metric", "filter_name", "printed"), PRINTED)
def test_the_mean_of_the_records_is_what_the_harness_printed(
    run: str, task: str, metric: str, filter_name: str, printed: float
) -> None:
    file = find_sample_files(SAMPLES / run)[task]
    records = read_sample_file(file, metric=metric, filter_name=filter_name)
    assert fmean(record.value for record in records) == printed


def test_a_choice_is_told_in_words() -> None:
    first = read_sample_file(BEFORE["endings"])[0]
    assert first.id == "0-53cc8964a381ee2d"
    assert (first.prompt, first.target, first.answer) == ("He went to the", "bank of the river", "bank of the river")
    assert (first.scorer, first.value, first.weight) == ("lm_eval:endings:acc@1", 1.0, 1.0)
    assert first.candidate_nats == (20.18680763244629, 20.46731948852539, 33.79277038574219)
    wrong = read_sample_file(BEFORE["endings"])[1]
    assert (wrong.target, wrong.answer, wrong.value) == ("States said that he", "the and for a", 0.0)


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_the_answer_to_a_choice_is_the_one_that_the_metric_scored(metric: str) -> None:
    for file in (BEFORE["endings"], AFTER["endings"]):
        for record in read_sample_file(file, metric=metric):
            assert (record.answer == record.target) == record.value
    # One of eight is right only if the length of the options is taken account of.
    likeliest, normalised = (read_sample_file(BEFORE["endings"], metric=name)[2] for name in ("acc", "acc_norm"))
    assert (likeliest.value, normalised.value) == (0, 1)
    assert likeliest.answer != normalised.answer == normalised.target


def test_an_answer_in_text_is_that_of_the_filter() -> None:
    records = read_sample_file(BEFORE["next_word"], filter_name="first-word")
    assert records[0].scorer == "lm_eval:next_word:exact_match,first-word@1"
    assert (records[0].prompt, records[0].target) == ("The prime minister of the United", "Kingdom")
    assert (records[0].answer, records[0].value, records[0].candidate_nats) == ("of", 0.0, ())


def test_an_answer_that_the_filter_cannot_read_is_not_parsed() -> None:
    by_filter = {
        name: [record.is_parsed for record in read_sample_file(BEFORE["next_word"], filter_name=name)]
        for name in ("first-word", "capital")
    }
    assert by_filter == {"first-word": [True, False, False, False, True, True], "capital": [False] * 6}


def test_two_runs_compare_like_any_other_records() -> None:
    old, new = read_sample_file(BEFORE["endings"]), read_sample_file(AFTER["endings"])
    row = compare_task(CHOICE, old, new)
    assert (row.num_examples, row.before, row.after, row.num_lost, row.num_gained) == (8, 0.25, 0.125, 1, 0)
    assert [(lost.prompt, lost.answer_after) for lost in row.lost] == [("He went to the", "and of which was")]
    flips = count_flips([one.value for one in old], [one.value for one in new])
    assert (flips.negative_flip_rate, flips.conditional_forgetting) == (1 / 8, 1 / 2)


def put(**values: object) -> Callable[[dict], None]:
    return lambda sample: sample.update(values)


def changed(source: Path, folder: Path, change: Callable[[dict], None], *, every: bool = False) -> Path:
    """A copy of a file with its first line changed, or every line."""
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for sample in lines if every else lines[:1]:
        change(sample)
    copy = folder / source.name
    copy.write_text("".join(json.dumps(sample) + "\n" for sample in lines), encoding="utf-8")
    return copy


def another_option(sample: dict) -> None:
    sample["arguments"]["gen_args_1"]["arg_1"] += " again"


def other_settings(sample: dict) -> None:
    sample["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] = 9


@pytest.mark.parametrize(
    ("task", "filter_name", "change"),
    [
        ("endings", "none", another_option),
        ("endings", "none", put(prompt_hash="0" * 64)),
        ("next_word", "capital", other_settings),
    ],
)
def test_another_prompt_option_or_setting_is_refused(
    task: str, filter_name: str, change: Callable[[dict], None], tmp_path: Path
) -> None:
    before = read_sample_file(BEFORE[task], filter_name=filter_name)
    after = read_sample_file(changed(AFTER[task], tmp_path, change, every=True), filter_name=filter_name)
    assert [one.id for one in before] == [one.id for one in after]
    with pytest.raises(JoinError, match=rf"{len(before)} id\(s\) differ in prompt_sha256"):
        compare_task(CHOICE, before, after)


def test_another_document_of_the_same_number_is_another_example(tmp_path: Path) -> None:
    before = read_sample_file(BEFORE["endings"])
    after = read_sample_file(changed(AFTER["endings"], tmp_path, put(doc_hash="0" * 64)))
    with pytest.raises(JoinError, match=r"1 id\(s\) are only in the records before training: '0-53cc8964a381ee2d'"):
        compare_task(CHOICE, before, after)


def test_another_metric_or_filter_is_another_scorer() -> None:
    before = read_sample_file(BEFORE["endings"], metric="acc")
    with pytest.raises(JoinError, match="differ in scorer"):
        compare_task(CHOICE, before, read_sample_file(AFTER["endings"], metric="acc_norm"))


def test_options_that_differ_in_the_context_are_told_by_their_ends(tmp_path: Path) -> None:
    # As of a Winograd schema: the continuation is the same, the context holds the option.
    def in_context(sample: dict) -> None:
        sample["target"] = "was hungry."
        sample["arguments"] = {
            f"gen_args_{k}": {"arg_0": f"The cat left, as the {name}", "arg_1": " was hungry."}
            for k, name in enumerate(["cat", "camel", "dog"])
        }

    file = changed(BEFORE["endings"], tmp_path, in_context)
    record = read_sample_file(file)[0]
    assert (record.prompt, record.answer, record.target) == ("The cat left, as the ", "cat", "was hungry.")
    assert read_sample_file(file, metric="acc_norm")[0].answer is None  # lengths are not in the file


def test_mutual_information_prefers_what_the_context_makes_likelier(tmp_path: Path) -> None:
    # nats with the context 20, 21, 30 and without it 20, 23, 30: only the second is likelier for the context.
    def with_unconditional(sample: dict) -> None:
        given = list(sample["arguments"].values())
        bare = [{"arg_0": "", "arg_1": request["arg_1"]} for request in given]
        sample["arguments"] = {f"gen_args_{k}": request for k, request in enumerate([*given, *bare])}
        sample["filtered_resps"] = [[str(-nats), "False"] for nats in (20.0, 21.0, 30.0, 20.0, 23.0, 30.0)]
        sample["metrics"] = ["acc", "acc_mutual_info"]
        sample["acc_mutual_info"] = 0.0

    file = changed(BEFORE["endings"], tmp_path, with_unconditional, every=True)
    likeliest, informed = (read_sample_file(file, metric=metric)[0] for metric in ("acc", "acc_mutual_info"))
    assert (likeliest.answer, informed.answer) == ("bank of the river", "and of which was")
    assert likeliest.candidate_nats == informed.candidate_nats == (20.0, 21.0, 30.0)
    assert informed.prompt == "He went to the"


def test_an_answer_that_contradicts_its_score_is_not_told(tmp_path: Path) -> None:
    assert read_sample_file(changed(BEFORE["endings"], tmp_path, put(acc=0.0)))[0].answer is None


def test_a_given_text_is_scored_and_nothing_said(tmp_path: Path) -> None:
    # As of LAMBADA: one request, the log-likelihood of the target.
    request = {"gen_args_0": {"arg_0": "He went to the", "arg_1": " bank"}}
    of_one_text = put(arguments=request, filtered_resps=[["-3.5", "True"]])
    record = read_sample_file(changed(BEFORE["endings"], tmp_path, of_one_text))[0]
    assert (record.answer, record.value, record.is_parsed) == (None, 1.0, True)


def test_exact_match_goes_before_accuracy_and_any_only_metric_will_do(tmp_path: Path) -> None:
    for change, chosen in (
        (put(metrics=["acc", "exact_match"], exact_match=0.0), "exact_match"),
        (put(metrics=["acc_norm"]), "acc_norm"),
    ):
        record = read_sample_file(changed(BEFORE["endings"], tmp_path, change, every=True))[0]
        assert record.scorer == f"lm_eval:endings:{chosen}@1"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (put(acc=[0, 1]), r"metric acc is \[0, 1\], not one number from 0 to 1.*metrics here: acc, acc_norm"),
        (put(acc=-33.2), "metric acc is -33.2"),
        (put(acc=float("nan")), "metric acc is nan"),
        (put(metrics=[]), "not as lm-eval writes them: metrics"),
        (put(metrics=["acc", "absent"]), "not as lm-eval writes them: metrics"),
        (put(target=0), "not as lm-eval writes them: target"),
        (put(doc_id=0.5), "doc_id"),
        (put(filtered_resps=[["-1.0", "False"]]), "arguments or filtered_resps"),
        (put(arguments={}), "arguments or filtered_resps"),
        (put(arguments={f"gen_args_{k}": {} for k in range(3)}), "arguments or filtered_resps"),
        (put(filtered_resps=["a", "b", "c"]), "not a log-likelihood for each of 3 options"),
        (put(filtered_resps=[["-inf", "False"]] * 3), "a log-likelihood is not finite"),
        (lambda sample: sample.pop("prompt_hash"), "not a sample of lm-eval, prompt_hash missing"),
    ],
)
def test_a_line_that_is_no_sample_is_refused_in_one_line(
    change: Callable[[dict], None], part: str, tmp_path: Path
) -> None:
    file = changed(BEFORE["endings"], tmp_path, change)
    with pytest.raises(DataError, match=part) as caught:
        read_sample_file(file, metric="acc")
    assert str(caught.value).startswith(f"{file}:1: ")
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_samples_are_refused_in_one_line(tmp_path: Path) -> None:
    name = BEFORE["endings"].name
    cases = {
        tmp_path / "absent" / name: "cannot be read",
        tmp_path / f"results_{LATER}.json": "aggregated results, which hold no examples",
        tmp_path / "endings.jsonl": "the name tells no task and date",
        tmp_path / name: "empty",
    }
    for path in list(cases)[1:]:
        path.write_text("")
    for path, part in cases.items():
        with pytest.raises(DataError, match=part) as caught:
            read_sample_file(path)
        assert str(path) in str(caught.value)
        assert "--log_samples" in str(caught.value)
    (tmp_path / name).write_text("{\n")
    with pytest.raises(DataError, match=r"jsonl:1: not JSON"):
        read_sample_file(tmp_path / name)
    (tmp_path / name).write_text("[1]\n")
    with pytest.raises(DataError, match="not a sample of lm-eval, doc_id, target"):
        read_sample_file(tmp_path / name)


def test_a_repeated_document_is_refused(tmp_path: Path) -> None:
    text = BEFORE["endings"].read_text(encoding="utf-8")
    file = tmp_path / BEFORE["endings"].name
    file.write_text(text + text.splitlines()[2] + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r":9: document 2 occurs again, first at .*:3"):
        read_sample_file(file)


def test_a_folder_gives_the_newest_file_of_each_task(tmp_path: Path) -> None:
    model = tmp_path / "models__small"
    model.mkdir()
    for file in (BEFORE["endings"], BEFORE["next_word"]):
        (model / file.name).write_bytes(file.read_bytes())
    (model / f"samples_endings_{LATER}.jsonl").write_bytes(AFTER["endings"].read_bytes())
    (model / f"results_{LATER}.json").write_text("{}")
    for folder in (model, tmp_path):  # --output_path itself, or the model's folder in it
        assert {task: file.name for task, file in find_sample_files(folder).items()} == {
            "endings": f"samples_endings_{LATER}.jsonl",
            "next_word": BEFORE["next_word"].name,
        }
    by_task = read_lm_eval(model / f"samples_endings_{LATER}.jsonl", metric="acc_norm")
    assert {task: len(records) for task, records in by_task.items()} == {"endings": 8}


def test_a_folder_without_samples_of_one_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no samples_\*.jsonl. Run lm_eval with --log_samples"):
        find_sample_files(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / f"results_{LATER}.json").write_text("{}")
    with pytest.raises(DataError, match="aggregated results only"):
        find_sample_files(tmp_path)
    with pytest.raises(DataError, match=r"samples of several models: after, before\. Give the folder of one"):
        find_sample_files(SAMPLES)
