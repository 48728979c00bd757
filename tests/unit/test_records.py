"""Records on disk: equal when read back, the same bytes for the same records, a damaged line told with its place."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from tests.unit.test_forgetting import record, scores
from trainer.config.errors import DataError
from trainer.evaluation.records import ExampleRecord, read_records, write_records


def test_records_come_back_equal_and_sorted_by_id(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "step_000000" / "quiz.jsonl"
    odd = replace(record("a", 0.1), prompt='line\nline\u2028"\ud800 \u00f1', answer=None)
    write_records(path, [record("b", 1), odd])
    assert read_records(path) == [odd, record("b", 1)]
    assert [entry.name for entry in path.parent.iterdir()] == ["quiz.jsonl"]
    assert path.read_bytes().count(b"\n") == 2


FULL = ExampleRecord(
    id="a",
    prompt_sha256="sha",
    scorer="token_nll@1",
    value=4.5,
    weight=3.0,
    prompt="p",
    target="t",
    answer="said",
    cluster="passage 1",
    candidate_nats=(0.1, 1e-300, 2.0),
    num_bytes=17,
    is_parsed=False,
    kl_nats=0.30000000000000004,
    num_agreeing_tokens=2,
)


@pytest.mark.parametrize(
    "record_of",
    [
        FULL,
        replace(FULL, cluster=None, num_bytes=None, kl_nats=None, num_agreeing_tokens=None, is_parsed=True),
        replace(FULL, cluster="", candidate_nats=(), kl_nats=0.0, num_agreeing_tokens=0),
    ],
)
def test_every_field_comes_back_bit_for_bit(tmp_path: Path, record_of: ExampleRecord) -> None:
    write_records(tmp_path / "one.jsonl", [record_of])
    assert read_records(tmp_path / "one.jsonl") == [record_of]
    raw = json.loads((tmp_path / "one.jsonl").read_text(encoding="utf-8"))
    assert list(raw) == [field.name for field in fields(ExampleRecord)]


def test_the_same_records_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    write_records(tmp_path / "one", scores(0, 1, 0.5))
    write_records(tmp_path / "two", scores(0, 1, 0.5)[::-1])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_missing_file_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"quiz\.jsonl: cannot be read \(No such file"):
        read_records(tmp_path / "quiz.jsonl")


GOOD = asdict(record("a", 1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "prom', "not JSON"),
        ("", "not JSON"),
        ("[1]", "not a record"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "weight"}), "not a record"),
        (json.dumps({**GOOD, "extra": 1}), "not a record"),
        (json.dumps({**GOOD, "value": "1"}), "wrong type of value"),
        (json.dumps({**GOOD, "value": True}), "wrong type of value"),
        (json.dumps({**GOOD, "id": 7}), "wrong type of id"),
        (json.dumps({**GOOD, "answer": 7}), "wrong type of answer"),
        (json.dumps({**GOOD, "value": float("nan")}), "value is nan"),
        (json.dumps({**GOOD, "weight": 0.0}), "weight is 0.0"),
        (json.dumps({**GOOD, "weight": float("inf")}), "weight is inf"),
        (json.dumps({**GOOD, "value": 10**400}), ""),
        (json.dumps({**GOOD, "weight": 10**400}), ""),
        (json.dumps({**GOOD, "cluster": 7}), "wrong type of cluster"),
        (json.dumps({**GOOD, "candidate_nats": 7}), "wrong type of candidate_nats"),
        (json.dumps({**GOOD, "candidate_nats": [1.0, "2"]}), "wrong type of candidate_nats"),
        (json.dumps({**GOOD, "candidate_nats": [True]}), "wrong type of candidate_nats"),
        (json.dumps({**GOOD, "candidate_nats": [1.0, float("nan")]}), "not finite"),
        (json.dumps({**GOOD, "num_bytes": 1.5}), "wrong type of num_bytes"),
        (json.dumps({**GOOD, "num_bytes": True}), "wrong type of num_bytes"),
        (json.dumps({**GOOD, "is_parsed": 1}), "wrong type of is_parsed"),
        (json.dumps({**GOOD, "is_parsed": None}), "wrong type of is_parsed"),
        (json.dumps({**GOOD, "kl_nats": "0"}), "wrong type of kl_nats"),
        (json.dumps({**GOOD, "kl_nats": True}), "wrong type of kl_nats"),
        (json.dumps({**GOOD, "kl_nats": float("nan")}), ""),
        (json.dumps({**GOOD, "kl_nats": float("inf")}), ""),
        (json.dumps({**GOOD, "num_agreeing_tokens": 1.0}), "wrong type of num_agreeing_tokens"),
    ],
)
def test_a_line_that_is_no_record_is_refused_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"quiz\.jsonl:2: .*{message}") as caught:
        read_records(path)
    assert "\n" not in str(caught.value)
