"""Malformed data: each complaint says where, what was found and what to do, and the good examples remain."""

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from trainer.config.errors import DataError
from trainer.data.files import ENDINGS, WANTED_ENDINGS
from trainer.data.json_rows import as_row
from trainer.data.sources import BadExamples, read_rows

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
BOM = b"\xef\xbb\xbf"
GOOD = b'{"a": "x"}\n'
TABLE = b"a,b\nx,y\n"


def skipped(path: Path) -> tuple[list[object], list[str]]:
    """First column of the good examples, and the complaints about the others without the folder."""
    bad = BadExamples("skip", max_named=100)
    values = [next(iter(row.values.values())) for row in read_rows(str(path), columns={}, bad=bad)]
    assert bad.finish("it") == bad.count == len(bad.messages)
    return values, [message.replace(f"{path.parent}/", "") for message in bad.messages]


def refusal(source: Path, policy: str = "error") -> str:
    """What one hears, without the folder, under a policy."""
    bad = BadExamples("skip" if policy == "skip" else "error")
    with pytest.raises(DataError) as caught:
        _ = list(read_rows(str(source), columns={}, bad=bad)), bad.finish("it")
    return str(caught.value).replace(f"{source.parent}/", "")


BAD_RECORDS = [
    ("no_end.jsonl", GOOD + b'\n{"a": 1', "no_end.jsonl:3: malformed JSON: Expecting ',' delimiter at column 8."),
    ("list.jsonl", b"[1]\n" + GOOD, "list.jsonl:1: found a JSON list, wanted an object with columns."),
    ("string.jsonl", b'"t"\n' + GOOD, "string.jsonl:1: found a JSON str, wanted an object with columns."),
    ("number.jsonl", GOOD + b"3", "number.jsonl:2: found a JSON int, wanted an object with columns."),
    ("null.jsonl", GOOD + b"null", "null.jsonl:2: found a JSON NoneType, wanted an object with columns."),
    ("two.jsonl", GOOD + b"{} {}", "two.jsonl:2: malformed JSON: Extra data at column 4."),
    ("twice.jsonl", GOOD + b'{"a": 1, "a": 2}', "twice.jsonl:2: the key 'a' stands twice in one object. Keep one"),
    ("in.jsonl", GOOD + b'{"a": [{"b": 1, "b": 1}]}', "in.jsonl:2: the key 'b' stands twice in one object."),
    ("half.jsonl", GOOD + b'{"a": "\\ud83d"}', r"half.jsonl:2: a text holds '\ud83d', half of a surrogate pair."),
    ("deep.jsonl", GOOD + b'{"a":' + b"[" * 99999, "deep.jsonl:2: malformed JSON: nested too deeply to be read."),
    ("latin.jsonl", GOOD + b'{"a": "\xe9"}', "latin.jsonl:2: not UTF-8 text (invalid continuation byte at byte 18)."),
    ("bom.jsonl", BOM + b'{"a": "\xff"}\n' + GOOD, "bom.jsonl:1: not UTF-8 text (invalid start byte at byte 10)"),
    ("row.json", b'[{"a": "x"}, 5]', "row.json: row 2: found a JSON int, wanted an object with columns."),
    ("key.json", b'[{"a": 1, "a": 2}, {"a": "x"}]', "key.json: row 1: the key 'a' stands twice in one object."),
    ("few.csv", TABLE + b"1\n", "few.csv:3: found 1 fields, wanted 2 (a, b). Put a text that holds the separator"),
    ("many.csv", b"a,b\n\n1,2,3\nx,y", "many.csv:3: found 3 fields, wanted 2 (a, b). Put a text that holds"),
    ("quote.csv", TABLE + b'"q"r,1\n', "quote.csv:3: ',' expected after '\"'."),
    ("both.csv", b'a,b\n"\xe9"q,1\nx,y', "both.csv:2: ',' expected after '\"'."),
    ("open.csv", b'a,b\n"1,2\n"3",4\nx,y', "open.csv:2: lines 2 to 3: ',' expected after '\"'."),
    ("latin.csv", TABLE + b'"1\n\xe9",2\n', "latin.csv:3: lines 3 to 4: not UTF-8 text (invalid continuation byte at"),
    ("tabs.tsv", b"a\tb\nx\ty\n1,2\n", "tabs.tsv:3: found 1 fields, wanted 2 (a, b)."),
    ("latin.txt", b"x\n\nbad\n\xe9\n", "latin.txt:3: not UTF-8 text (invalid continuation byte at byte 7)."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD_RECORDS)
def test_a_bad_record_is_named_and_the_good_one_beside_it_kept(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    values, complaints = skipped(path)
    assert values == ["x"]
    assert [complaint[: len(message)] for complaint in complaints] == [message]
    assert refusal(path) == complaints[0]
    assert "\n" not in complaints[0]


BAD_FILES = [
    ("e.jsonl", b"", "e.jsonl: empty data set: no example in the file. Fill it, or leave it out."),
    ("blank.jsonl", b"\n \n\t\n", "blank.jsonl: empty data set: no example in the file."),
    ("e.json", b"[]", "e.json: empty data set: no example in the file."),
    ("e.csv", b"a,b\n", "e.csv: empty data set: no example in the file."),
    ("e.txt", b"\n\n", "e.txt: empty data set: no example in the file."),
    ("e.parquet", b"", "e.parquet: damaged Parquet after row 0 (Parquet file size is 0 bytes). Copy or write it anew."),
    ("x.parquet", b"hello, world", "x.parquet: damaged Parquet after row 0 (Parquet magic bytes not found in footer."),
    ("x.json", b'{"a": 1}\n{"a": 2}', "x.json:2: malformed JSON: Extra data at column 1. Wanted an array of objects. "
     "Is it one object a line? Then let its name end in .jsonl."),
    ("cut.json", b'[{"a": 1},\n', "cut.json:2: malformed JSON: Expecting value at column 1. Wanted an array of"),
    ("s.json", b'"text"', "s.json: found a JSON str, wanted an array of objects, or one object with exactly one list"),
    ("m.json", b'{"a": [{}], "b": [{}]}', "m.json: found a JSON object with 2 lists of objects (a, b), wanted an"),
    ("n.json", b'{"a": [1], "b": 2}', "n.json: found a JSON object with 0 lists of objects, wanted an array"),
    ("t.json", b'{"a": [{}], "a": [{}]}', "t.json: the key 'a' stands twice in the outermost object."),
    ("latin.json", b'[{"a": "\xe9"}]', "latin.json: not UTF-8 text (invalid continuation byte at byte 8)."),
    ("no_head.csv", b"1.5,film\n2.5,book\n", "no_head.csv:1: column 1 of the header is '1.5', wanted a name."),
    ("index.csv", b",a\n0,x\n", "index.csv:1: column 1 of the header is '', wanted a name. Give every column a name."),
    ("twice.csv", b"a,b,a\n1,2,3\n", "twice.csv:1: the column 'a' stands twice in the header. Rename one of them."),
    ("semi.csv", b"a;b\n1;2\n", "semi.csv:1: the header is separated by ';', wanted ','. Convert the file."),
    ("open.csv", TABLE + b'"1,2\n3,4\n', "open.csv:3: a quote is never closed to the end of the file, line 4."),
    ("x.csv.gz", TABLE, "x.csv.gz: damaged gzip after line 0 (Not a gzipped file (b'a,')). Copy or compress it anew."),
    ("x.csv", gzip.compress(TABLE), "x.csv: found gzip, wanted text. Let its name end in .gz."),
    ("x.jsonl", b"PAR1" + b"\0" * 9, "x.jsonl: found Parquet, wanted text. Let its name end in .parquet."),
    ("x.txt", b"PK\x03\x04...", "x.txt: found a zip archive, wanted text. Unpack it first."),
    ("utf16.csv", "a,b\n".encode("utf-16"), "utf16.csv: found UTF-16, wanted UTF-8. Convert it first."),
    ("l.parquet", LFS, "l.parquet: found a pointer of Git LFS, wanted the data itself. Fetch it with `git lfs pull`."),
    ("l.jsonl", LFS, "l.jsonl: found a pointer of Git LFS, wanted the data itself. Fetch it with `git lfs pull`."),
    ("x.xlsx", b"PK", f"x.xlsx: unknown file ending '.xlsx'. Wanted one of {WANTED_ENDINGS}."),
    ("x.parquet.gz", b"x", "x.parquet.gz: unknown file ending '.gz'. Wanted one of"),
]  # fmt: skip


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_file_that_is_wrong_as_a_whole_is_refused_under_either_policy(
    tmp_path: Path, name: str, content: bytes, message: str, policy: str
) -> None:
    (tmp_path / name).write_bytes(content)
    found = refusal(tmp_path / name, policy)
    assert found[: len(message)] == message
    assert "\n" not in found


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending not in (".parquet", ".json")])
def test_a_gzip_that_ends_too_early_yields_what_it_holds_and_then_stops(tmp_path: Path, ending: str) -> None:
    # Stored without compression, so that the first thousand bytes hold whole rows.
    row = {"csv": b"x,y\n", "tsv": b"x\ty\n", "txt": b"x\n\n"}.get(ending[1:], b'{"a": "x"}\n')
    header = {"csv": b"a,b\n", "tsv": b"a\tb\n"}.get(ending[1:], b"")
    path = tmp_path / f"cut{ending}.gz"
    path.write_bytes(gzip.compress(header + row * 20_000, compresslevel=0)[:50_000])
    rows = read_rows(str(path), columns={}, bad=BadExamples("skip"))
    values = []
    with pytest.raises(DataError, match=r"damaged gzip after line \d+ \(Compressed file ended before .*anew\.$"):
        values += [next(rows).values for _ in range(20_000)]
    assert next(rows, None) is None


def test_a_gzip_with_wrong_content_is_found_by_its_checksum(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(GOOD * 100))
    content[-8] ^= 1
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    assert refusal(tmp_path / "x.jsonl.gz", "skip").startswith(
        "x.jsonl.gz: damaged gzip after line 100 (CRC check failed"
    )


def test_a_parquet_that_is_damaged_in_the_middle_or_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [f"text {n}" for n in range(1000)]}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert refusal(path, "skip").startswith("x.parquet: damaged Parquet after row 0 (Parquet magic bytes not found")
    path.write_bytes(whole[:8] + b"\xff" * 40 + whole[48:])
    assert refusal(path, "skip").startswith("x.parquet: damaged Parquet after row 0 (")


def test_a_parquet_without_rows_or_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), path)
    assert refusal(path) == "x.parquet: empty data set: no example in the file. Fill it, or leave it out."
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["a", "a"]), path)
    assert refusal(path) == "x.parquet: the column 'a' stands twice. Rename one of them."


def test_a_file_that_may_not_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / ("x" * 300 + ".jsonl")).endswith("cannot be read (File name too long).")


def test_a_value_that_is_parsed_but_too_deep_to_be_looked_through_is_refused() -> None:
    value: object = "x"
    for _ in range(5_000):
        value = [value]
    with pytest.raises(ValueError, match=r"^malformed JSON: nested too deeply"):
        as_row({"a": value})
