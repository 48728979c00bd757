"""The report as an HTML page: its answer, its numbers, and that no text of an example can break it."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report_rows import FABLES, HOSTILE, KEPT, PROSE, PROVENANCE, QUIZ, REVIEWS, report_of
from trainer.config.errors import DataError
from trainer.evaluation.capability_row import CapabilityRow, LostExample
from trainer.evaluation.continual import ContinualMatrix
from trainer.evaluation.figures import HistoryPoint
from trainer.evaluation.report import ForgettingReport, Recovery, build_report, write_report
from trainer.evaluation.report_text import headline, interval, number, signed
from trainer.evaluation.stages import read_off
from trainer.report_answer import answer
from trainer.report_html import read_history, render_html, write_html

UNCLOSED = {"meta", "input"}
"""Elements without an end tag, of those on the page."""

STAGES = read_off(
    ContinualMatrix(
        stages=("base", "stage 1", "stage 2"),
        tasks=("reviews", "summaries", "quiz", "sums"),
        learnt_in=(1, 2, 0, 0),
        scores_RT=((0.1, 0.2, 0.9, 0.3), (0.95, 0.15, 0.85, 0.4), (0.6, 0.7, 0.8, 0.9)),
    ),
    steps=(0, 50, 100),
)
HISTORY = [HistoryPoint(50, {"drift/base/delta_nll": 0.125}), HistoryPoint(100, {"drift/base/delta_nll": 0.5})]


class Reader(HTMLParser):
    """Tags, attributes, and texts by tag.class; asserts that every element is closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self._around: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in UNCLOSED:
            self.open.append(tag)
            classes = [word for name, value in attrs if name == "class" for word in (value or "").split()]
            self._around.append([tag, *(f"{tag}.{word}" for word in classes)])
            for key in self._around[-1]:
                self.texts.setdefault(key, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._around.pop()

    def handle_data(self, data: str) -> None:
        for key in {key for keys in self._around for key in keys}:
            self.texts[key][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def whole() -> ForgettingReport:
    probe = Recovery(
        **{"name": "prose", "before": 4.52, "after": 4.93, "probed": 4.6, "recovered_share": 0.805},
        **{"num_steps": 20, "num_examples": 64},
    )
    built = build_report([PROSE, FABLES, QUIZ, KEPT, REVIEWS], provenance=PROVENANCE, stages=STAGES)
    return replace(built, recovery=(probe,))


@pytest.fixture(scope="module")
def html() -> str:
    return render_html(whole(), HISTORY, title="run 7")


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return Reader(html)


def rows_of(html: str, caption: str) -> list[list[str]]:
    """Cells of the table with this caption."""
    (table,) = [one for one in re.findall(r"<table.*?</table>", html, flags=re.DOTALL) if f">{caption}<" in one]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]


def test_the_answer_comes_first_and_the_parts_follow_in_their_order(reader: Reader) -> None:
    assert reader.texts["h2"] == [
        *("Verdicts on base abilities", "Changes and their intervals", "Stages", "Learning against forgetting"),
        *("Drift of predictions", "All measures", "Single answers", "Recovery probe", "Lost examples", "Provenance"),
    ]
    assert reader.texts["h1"] == ["run 7: what was learnt, what was forgotten"]
    assert reader.texts["p.answer"] == ["This model has measurably lost: prose."]
    assert reader.texts["p.headline"] == [headline(whole())]
    assert reader.texts["title"][0] == "run 7: REGRESSED"


def test_a_report_without_parts_has_no_headings_for_them() -> None:
    lone = Reader(render_html(build_report([REVIEWS], provenance={}), [], title="t"))
    assert lone.texts["h2"] == ["Changes and their intervals", "All measures", "Single answers"]


@pytest.mark.parametrize("row", [PROSE, QUIZ, KEPT, FABLES, REVIEWS], ids=lambda row: row.name)
def test_the_overall_line_of_a_page_fits_its_verdict(row: CapabilityRow) -> None:
    report = report_of(row)
    page = Reader(render_html(report, [], title="t"))
    assert page.texts["p.answer"] == [answer(report).line]
    assert (report.verdict or "NOT MEASURED") in page.texts["span.verdict"][0]


def test_every_base_capability_has_a_card_the_worst_verdict_first(reader: Reader) -> None:
    cards = reader.texts["article.card"]
    assert [card.split()[0] for card in cards] == ["prose", "knowledge", "fables", "sums"]
    assert "(worst)" in cards[0]
    for card, row in zip(cards, (PROSE, QUIZ, FABLES, KEPT), strict=True):
        change = (number(row.before), number(row.after), signed(row.difference), interval(row))
        for told in (*change, f"{number(row.margin)} {row.unit}", f"{row.num_examples:,}"):
            assert told in card
    assert ["7,166" in card for card in cards] == [False, True, False, False]
    assert "gain in [-0.03, +0.04] holds both 0 and the margin -0.02" in cards[1]


def test_several_measures_of_a_capability_share_its_card() -> None:
    page = Reader(render_html(report_of(PROSE, replace(QUIZ, capability="prose")), [], title="t"))
    (card,) = page.texts["article.card"]
    assert all(told in card for told in ("prose", "quiz", "REGRESSED", "INCONCLUSIVE"))


def test_tables_hold_the_numbers_of_the_report(html: str) -> None:
    measures = rows_of(html, "Before and after training")[1:]
    assert [row[0] for row in measures] == ["reviews", "prose", "fables", "knowledge", "sums"]
    assert measures[1][2:] == ["400", "4.52", "4.93", "+0.41", "[0.38, 0.44]", "REGRESSED"]
    answers = rows_of(html, "Right before and wrong now, and the reverse")
    assert answers[2] == ["knowledge (quiz)", "5", "7", "4.2%", "87.5%", "1.5%", "101.7%", "3 \u2192 11"]
    assert rows_of(html, "Score of every task after every stage, share")[2][1:] == ["50", "0.95", "0.15", "0.85", "0.4"]
    assert rows_of(html, "What a few steps on a copy of the model brought back")[1][3:5] == ["4.6", "80.5%"]


def test_no_mean_stands_without_its_worst(html: str) -> None:
    # Mean over tokens of +0.41 and -0.1, equal weights: 0.155.
    drift = rows_of(html, "How far predictions have moved, means over tokens")[1]
    assert drift == ["base abilities", "+0.155", "prose +0.41", "0.25", "75.0%"]
    # quiz 0.9 -> 0.8, sums 0.3 -> 0.9: mean +0.25.
    assert "<li>Mean change of base abilities: +0.25</li>\n<li>Worst of them, quiz: -0.1</li>" in html


def test_every_lost_example_is_on_the_page_whole(reader: Reader) -> None:
    texts = reader.texts["div.text"]
    assert texts[:4] == ["Capital of Peru?", "Lima", "Lima", "(empty)"]
    assert texts[4:8] == [HOSTILE, f"{HOSTILE}2", f"{HOSTILE}3", f"{HOSTILE}4"]
    assert texts[8:] == ["a\\x00b\\x1bc\\u202ed\\ud83de\nf", "t"]
    long = LostExample(prompt="p" * 5000, target="", answer_before=None, answer_after=None)
    page = Reader(render_html(report_of(replace(QUIZ, lost=(long,))), [], title="t"))
    assert page.texts["div.text"][0] == "p" * 5000


def test_without_the_script_everything_is_visible(reader: Reader) -> None:
    details = [(name, value) for tag, name, value in reader.attributes if tag == "details"]
    assert details.count(("open", "")) == len(QUIZ.lost)
    assert [tag for tag, name, _ in reader.attributes if name == "hidden"] == ["div"]  # the search itself


def test_what_the_search_chooses_by_is_on_every_example(html: str, reader: Reader) -> None:
    chosen = [value for tag, name, value in reader.attributes if (tag, name) == ("option", "value")]
    assert chosen == ["", "knowledge"]
    assert reader.values("data-capability") == ["knowledge"] * len(QUIZ.lost)
    assert set(re.findall(r'getElementById\("(\w+)"\)', html)) <= set(reader.values("id"))


def test_data_is_never_markup() -> None:
    odd = replace(QUIZ, name="odd", capability=HOSTILE, interval_method=HOSTILE)
    page = render_html(report_of(odd, PROSE, replace(REVIEWS, capability=HOSTILE)), HISTORY, title=HOSTILE)
    assert len(re.findall("<script", page)) == 1
    assert len(Reader(page).texts["script"]) == 1
    assert "x</script>" not in page


def test_only_the_pages_own_script_may_run_and_nothing_is_loaded(html: str, reader: Reader) -> None:
    (policy,) = [value for value in reader.values("content") if "default-src" in value]
    digest = base64.b64encode(hashlib.sha256(reader.texts["script"][0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    tags = {tag for tag, _, _ in reader.attributes}
    assert not {"link", "img", "image", "iframe", "object"} & tags
    assert reader.values("src") == reader.values("href") == []
    assert "@import" not in html
    inside = [*reader.values("xlink:href"), *re.findall(r"url\((.*?)\)", html)]
    assert inside
    assert {one.removeprefix("#") for one in inside} <= set(reader.values("id"))
    assert {name for _, name, value in reader.attributes if "://" in value} == {"xmlns", "xmlns:xlink"}
    assert html.count("://") == 2 * html.count("<svg")


def test_ids_are_unique_and_figures_tell_their_numbers(reader: Reader) -> None:
    ids = reader.values("id")
    assert len(set(ids)) == len(ids)
    told = [value for tag, name, value in reader.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(told) == 4
    assert "prose: +0.41 nats/token [0.38, 0.44], margin 0.05, REGRESSED" in told[0]
    assert "after stage 1: reviews 0.95, summaries 0.15" in told[1]
    assert "prose +0.41 nats/token [0.38, 0.44]" in told[2]
    assert "step 100: drift/base/delta_nll 0.5" in told[3]


def test_the_same_report_gives_the_same_bytes(html: str) -> None:
    assert render_html(whole(), HISTORY, title="run 7") == html


def test_a_run_folder_gets_its_page_with_and_without_history(tmp_path: Path) -> None:
    write_report(tmp_path / "report.json", whole())
    path = write_html(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render_html(whole(), [], title=tmp_path.name)
    line = {"step": 50, "train/loss": 2.0, **HISTORY[0].values}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert write_html(tmp_path).read_text(encoding="utf-8") == render_html(whole(), HISTORY[:1], title=tmp_path.name)


def test_history_has_the_comparisons_only_and_one_point_a_step(tmp_path: Path) -> None:
    lines = [
        '{"step": 2, "forgetting/a/difference": 1.0, "drift/base/delta_nll": 3}',
        '{"step": 1, "train/loss": 2.0}',
        '{"step": 1, "learning/b/difference": 4.0, "heldout/b": 1.0}',
        '{"step": 2, "forgetting/a/difference": 2.0}',
        '{"step": 3, "drift/ba',
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_history(path) == [
        HistoryPoint(1, {"learning/b/difference": 4.0}),
        HistoryPoint(2, {"forgetting/a/difference": 2.0, "drift/base/delta_nll": 3.0}),
    ]


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"drift/x": 1}', '{"step": 1, "drift/x": NaN}', '{"step": 1, "drift/x": "a"}']
)
def test_a_damaged_line_of_history_is_told_with_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: .* is no object with a step and finite numbers"):
        read_history(path)
