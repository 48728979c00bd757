"""Prepared data is found again exactly as long as nothing that it was made of has changed."""

import os
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from trainer.config.errors import DataError
from trainer.data import fingerprint
from trainer.data.fingerprint import Fingerprints, key_of


def old_file(path: Path, text: str) -> Path:
    """A file that was written long ago."""
    path.write_text(text, encoding="utf-8")
    os.utime(path, (time.time() - 100, time.time() - 100))
    return path


def test_the_hash_follows_the_content_and_the_ending_not_the_place(tmp_path: Path) -> None:
    prints = Fingerprints(tmp_path / "memory")
    a, b, c = (old_file(tmp_path / name, text) for name, text in (("a.jsonl", "1"), ("b.jsonl", "1"), ("c.jsonl", "2")))
    text = old_file(tmp_path / "a.txt", "1")
    assert prints.source(str(a)) == prints.source(str(b))
    assert prints.source(str(a)) != prints.source(str(c))
    assert prints.source(str(a)) != prints.source(str(text))
    assert prints.source((str(a), str(c))) != prints.source((str(c), str(a)))


def test_a_file_of_the_same_size_with_another_content_has_another_hash(tmp_path: Path) -> None:
    prints = Fingerprints(tmp_path / "memory")
    path = old_file(tmp_path / "a.jsonl", "one")
    before = prints.source(str(path))
    old_file(path, "two")
    assert prints.source(str(path)) != before


def test_a_settled_file_is_read_once(tmp_path: Path) -> None:
    path = old_file(tmp_path / "a.jsonl", "one")
    with patch.object(fingerprint, "SETTLED_SECONDS", -1.0):
        before = Fingerprints(tmp_path / "memory").file(path)
        with patch.object(fingerprint.hashlib, "file_digest", side_effect=AssertionError("read again")):
            assert Fingerprints(tmp_path / "memory").file(path) == before


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("one", encoding="utf-8")
    Fingerprints(tmp_path / "memory").file(path)
    assert not list((tmp_path / "memory").glob("*"))


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    path = old_file(tmp_path / "a.jsonl", "one")
    with patch.object(fingerprint, "SETTLED_SECONDS", -1.0):
        before = Fingerprints(tmp_path / "memory").file(path)
        (memo,) = (tmp_path / "memory").glob("*.json")
        for text in ("", "[1]", "{"):
            memo.write_text(text, encoding="utf-8")
            assert Fingerprints(tmp_path / "memory").file(path) == before


def test_a_missing_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        Fingerprints(tmp_path).source(str(tmp_path / "none.jsonl"))


def test_the_tokenizer_is_all_its_files(tmp_path: Path) -> None:
    prints = Fingerprints(tmp_path / "memory")
    old_file(tmp_path / "tokenizer.json", "{}")
    old_file(tmp_path / "config.json", "{}")
    first = prints.tokenizer(tmp_path)
    old_file(tmp_path / "config.json", "[]")
    assert prints.tokenizer(tmp_path) == first
    old_file(tmp_path / "chat_template.jinja", "{{ messages }}")
    assert prints.tokenizer(tmp_path) != first


def test_a_key_depends_on_each_part_and_on_the_versions() -> None:
    assert key_of("a", [1], {"b": 2}) == key_of("a", [1], {"b": 2})
    keys = {key_of("a", [1]), key_of("a", [2]), key_of("b", [1]), key_of("a", 1), key_of("a", "1")}
    assert len(keys) == 5
    before = key_of("a")
    with patch.object(fingerprint, "version", lambda name: "99"):
        assert key_of("a") != before
    with patch.object(fingerprint, "FORMAT_NUMBER", 99):
        assert key_of("a") != before
