"""Sources to rows: every format gives the same table, places are right, and memory does not grow with the data."""

import csv
import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from trainer.config.data_schema import Source
from trainer.config.errors import DataError
from trainer.data.sources import MAX_NAMED, BadExamples, read_rows

TABLE = [{"text": 'a, "film"\nof two lines', "label": "good"}, {"text": "\u00e9t\u00e9 \u2028;\ttab", "label": "bad"}]
FLAT_MEMORY_BYTES = 400_000
"""What reading may hold at its peak: one batch of rows and some buffers, whatever the file's size."""


def read(source: Source, *, columns: dict[str, str] | None = None) -> list[tuple[str, dict[str, Any]]]:
    bad = BadExamples("error")
    rows = [(row.where, row.values) for row in read_rows(source, columns=columns or {}, bad=bad)]
    assert bad.finish("it") == 0
    return rows


def values(source: Source, **options: Any) -> list[dict[str, Any]]:
    return [row for _, row in read(source, **options)]


def refusal(source: Source, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **options)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def separated(rows: list[dict[str, str]], separator: str, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path], object]] = {
    "t.jsonl": lambda p: write(p, "".join(json.dumps(row) + "\n" for row in TABLE)),
    "t.ndjson": lambda p: write(p, "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in TABLE)),
    "t.jsonl.gz": lambda p: write(p, "\n\n".join(json.dumps(row) for row in TABLE)),
    "t.json": lambda p: write(p, json.dumps(TABLE, indent=1)),
    "t.JSON": lambda p: write(p, "\ufeff" + json.dumps({"version": 1, "data": TABLE, "tags": ["a"]})),
    "t.json.gz": lambda p: write(p, json.dumps(TABLE)),
    "t.csv": lambda p: separated(TABLE, ",", p),
    "t.tsv": lambda p: separated(TABLE, "\t", p),
    "t.csv.gz": lambda p: write(
        p, '\ufefftext,label\n"a, ""film""\nof two lines",good\n"\u00e9t\u00e9 \u2028;\ttab",bad'
    ),
    "t.parquet": lambda p: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TABLE), p),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_table(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert values(str(tmp_path / name)) == TABLE


def test_a_paragraph_of_plain_text_is_an_example_with_the_number_of_its_first_line(tmp_path: Path) -> None:
    for name in ("t.txt", "t.txt.gz"):
        path = write(tmp_path / name, "\ufeff\n one\r\n  two\n\n \t\n\nthree\n\nfour\nfive")
        assert read(str(path)) == [
            (f"{path}:2", {"text": " one\n  two"}),
            (f"{path}:7", {"text": "three"}),
            (f"{path}:9", {"text": "four\nfive"}),
        ]


def test_lines_are_numbered_over_blank_lines_and_either_line_end(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", '{"a": 1}\r\n\r\n \n{"a": "x\u2028y\u0085z"}\n{"a": 3}')
    assert read(str(path)) == [
        (f"{path}:1", {"a": 1}),
        (f"{path}:4", {"a": "x\u2028y\u0085z"}),
        (f"{path}:5", {"a": 3}),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_row_of_csv_has_the_number_of_its_first_line(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "t.csv", end.join(["", "a,b", '"1', "", '2",x', "", "3,y", '"4', '5","z"', "6,"]))
    assert read(str(path)) == [
        (f"{path}:3", {"a": f"1{end}{end}2", "b": "x"}),
        (f"{path}:7", {"a": "3", "b": "y"}),
        (f"{path}:8", {"a": f"4{end}5", "b": "z"}),
        (f"{path}:10", {"a": "6", "b": ""}),
    ]


def test_a_field_of_csv_may_be_a_long_document(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", f"a\n{'x' * 1_000_000}\n")
    assert [len(row["a"]) for row in values(str(path))] == [1_000_000]


def test_rows_of_json_and_parquet_count_from_one_over_all_batches(tmp_path: Path) -> None:
    table = [{"n": n} for n in range(600)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "t.parquet", row_group_size=100)
    write(tmp_path / "t.json", json.dumps(table))
    for name in ("t.parquet", "t.json"):
        assert read(str(tmp_path / name)) == [(f"{tmp_path / name}: row {n + 1}", {"n": n}) for n in range(600)]


def test_a_folder_is_read_by_name_without_what_is_hidden_or_no_data(tmp_path: Path) -> None:
    for name, text in [("b.jsonl", '{"a": 2}'), ("a.csv", "a\n1\n"), ("sub/c.json", '[{"a": 3}]'), ("README.md", "#")]:
        write(tmp_path / name, text)
    for name in (".hidden.jsonl", ".git/x.jsonl", "sub/.ipynb_checkpoints/c.json"):
        write(tmp_path / name, "broken")
    assert [row["a"] for row in values(str(tmp_path))] == ["1", 2, 3]


def test_a_pattern_and_several_sources_are_read_in_their_order(tmp_path: Path) -> None:
    for name in ("x/b1.jsonl", "x/a1.jsonl", "y/deep/c1.jsonl", "z.jsonl"):
        write(tmp_path / name, json.dumps({"a": Path(name).name[:2]}))
    write(tmp_path / "x[1].jsonl", '{"a": "brackets"}')
    assert [row["a"] for row in values(f"{tmp_path}/x/*.jsonl")] == ["a1", "b1"]
    assert [row["a"] for row in values(f"{tmp_path}/**/?1.jsonl")] == ["a1", "b1", "c1"]
    assert [row["a"] for row in values(f"{tmp_path}/x[1].jsonl")] == ["brackets"]
    assert [row["a"] for row in values((f"{tmp_path}/z.jsonl", f"{tmp_path}/y", f"{tmp_path}/x/a*"))] == [
        *("z.", "c1", "a1")
    ]


def test_all_paths_that_lead_nowhere_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "code/a.py", "")
    write(tmp_path / "shards/a.jsonl.zst", "")
    write(tmp_path / "shards/a.jsonl", "{}")
    names = ("gone.jsonl", "*.csv", "*", "empty", "code", "shards", "code/a.py", "shards/a.jsonl", "shards/*nl")
    found = refusal(tuple(f"{tmp_path}/{name}" for name in names)).replace(f"{tmp_path}/", "").splitlines()
    starts = [
        f"gone.jsonl: no such file or folder. Relative paths are looked for in {Path.cwd()}.",
        f"*.csv: no file matches this pattern. Relative patterns are looked for in {Path.cwd()}.",
        "*: only folders match this pattern.",
        "empty: no data file in this folder (found nothing). Wanted .jsonl, .ndjson, .json, .csv, .tsv, .txt, .parquet",
        "code: no data file in this folder (found .py). Wanted .jsonl",
        "shards/a.jsonl.zst: data of a kind that is not read, in a folder of data. Convert it, or name the other files",
        "shards/a.jsonl: named 2 times in one source. Name it once.",
        "code/a.py: unknown file ending '.py'. Wanted one of .jsonl, .ndjson",
    ]
    assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts


def test_columns_are_renamed_and_may_change_places(tmp_path: Path) -> None:
    path = str(write(tmp_path / "t.jsonl", '{"q": "Q", "a": "A", "c": 1}'))
    assert values(path, columns={"prompt": "q"}) == [{"q": "Q", "a": "A", "c": 1, "prompt": "Q"}]
    assert values(path, columns={"q": "a", "a": "q"}) == [{"q": "A", "a": "Q", "c": 1}]


def test_a_missing_column_is_not_replaced_by_another_one_of_the_same_name(tmp_path: Path) -> None:
    path = str(write(tmp_path / "t.jsonl", '{"text": "wrong", "body": "right"}\n{"text": "wrong"}'))
    assert values(path, columns={"text": "body"}) == [{"text": "right", "body": "right"}, {}]


def test_a_column_that_no_example_has_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    path = str(write(tmp_path / "t.jsonl", '{"b": 1}\n{"a": 2}'))
    assert refusal(path, columns={"text": "body", "label": "a", "x": "y"}) == (
        f"{path}: no example has column body, y, which `columns` names. Columns here: a, b."
    )


@pytest.mark.parametrize(("num_bad", "more"), [(10, []), (11, ["(1 more bad examples in it)"])])
def test_bad_examples_of_all_files_are_named_at_once_and_from_ten_on_counted(
    tmp_path: Path, num_bad: int, more: list[str]
) -> None:
    assert MAX_NAMED == 10
    first = write(tmp_path / "a.jsonl", '{"a": 1}\noops\n')
    second = write(tmp_path / "b.jsonl", "oops\n" * (num_bad - 1))
    lines = refusal(str(tmp_path)).splitlines()
    places = [f"{first}:2: malformed", *(f"{second}:{number}: malformed" for number in range(1, 10))]
    assert [line[: len(place)] for line, place in zip(lines[:10], places, strict=True)] == places
    assert lines[10:] == more


def test_bad_examples_may_be_left_out_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", "oops\n" * 25 + '{"a": 1}\n{"a": 2}\n')
    bad = BadExamples("skip")
    rows = list(read_rows(str(path), columns={}, bad=bad))
    bad.add(f"{rows[0].where}: its response is empty")
    assert [row.where for row in rows] == [f"{path}:26", f"{path}:27"]
    assert (bad.finish("it"), bad.num_read, len(bad.messages)) == (26, 27, 10)


def test_a_source_without_one_good_example_is_refused_even_where_bad_ones_may_be_left_out(tmp_path: Path) -> None:
    good, path = write(tmp_path / "good.jsonl", '{"a": 1}'), write(tmp_path / "bad.jsonl", "oops\n" * 3)
    bad = BadExamples("skip")
    rows = list(read_rows(str(good), columns={}, bad=bad))
    with pytest.raises(DataError, match=rf"^{path}: all 3 examples are bad, none is left\. First: {path}:1: malformed"):
        list(read_rows(str(path), columns={}, bad=bad))
    bad.add(f"{rows[0].where}: its response is empty")
    with pytest.raises(DataError, match=r"^it: all 4 examples are bad, none is left:\n"):
        bad.finish("it")


def lines_of(ending: str, num_rows: int) -> str:
    text = "some words of an example " * 8
    line = {"jsonl": json.dumps({"text": text}) + "\n", "csv": f"{text},1\n", "txt": f"{text}\n\n"}[ending]
    return ("a,b\n" if ending == "csv" else "") + line * num_rows


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt", "jsonl.gz", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, ending: str) -> None:
    # 1000 rows of 200 characters are 0.2 MB, 8000 are 1.6 MB: a reader that held the file would pass the bound.
    peaks = []
    for num_rows in (1_000, 8_000):
        path = tmp_path / f"{num_rows}.{ending}"
        if ending == "parquet":
            table = pyarrow.table({"text": [f"{n} some words " * 20 for n in range(num_rows)]})
            pyarrow.parquet.write_table(table, path, row_group_size=500)
        else:
            write(path, lines_of(ending.removesuffix(".gz"), num_rows))
        tracemalloc.start()
        assert sum(1 for _ in read_rows(str(path), columns={}, bad=BadExamples("error"))) == num_rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < FLAT_MEMORY_BYTES
    assert peaks[1] < 1.5 * peaks[0]


HUB = """
import sys
from trainer.config.data_schema import HubSource
from trainer.data.sources import BadExamples, read_rows
for options in ({}, {"split": "tset"}, {"subset": "no"}, {"revision": "0" * 40}, {"hub": "org/gone"}):
    try:
        source = HubSource(**{"hub": "org/quotes", **options})
        print([(row.where, row.values) for row in read_rows(source, columns={}, bad=BadExamples("error"))])
    except ValueError as error:
        print(error)
"""


def test_a_hub_data_set_that_was_downloaded_is_read_without_network(tmp_path: Path) -> None:
    home = tmp_path / "hub/datasets--org--quotes"
    write(home / "snapshots" / ("a" * 40) / "train.jsonl", '{"quote": "x"}\n{"quote": "y"}\n')
    write(home / "refs/main", "a" * 40)
    settings = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", HUB], env={**inherited, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows, split, subset, revision, gone = done.stdout.splitlines()
    assert rows == str(
        [("hub org/quotes train: row 1", {"quote": "x"}), ("hub org/quotes train: row 2", {"quote": "y"})]
    )
    assert split.startswith("hub org/quotes tset: cannot be read (Unknown split")
    assert subset.startswith("hub org/quotes train: cannot be read (BuilderConfig 'no' not found")
    assert revision.endswith(f"network: hf download --repo-type dataset org/quotes --revision {'0' * 40}")
    assert gone.startswith("hub org/gone train: found neither in the local cache nor on the hub (")
    assert gone.endswith("Where there is network: hf download --repo-type dataset org/gone")
