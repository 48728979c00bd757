"""The HTML page about a run's data: its numbers and texts are the value's, and nothing in it comes from elsewhere."""

import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from matplotlib.patches import Rectangle, StepPatch

from trainer.data.token_store import Summary
from trainer.inspection_html import html_page, lengths_figure, mixture_figure
from trainer.inspection_page import ExamplePart, Histogram, Page, TaskPart, Window

UNCLOSED = {"meta"}
"""Elements without an end tag, of those on the page."""

PROMPT = "<|user|>\n  Say  hello & <b>bye</b>:\r\n\n"
ANSWER = "\n\thello \n bye  <|end|>\n"
HOSTILE = '"><script>x</script>&amp;'

TRANSLATION = TaskPart(
    name="translation",
    summary=Summary(
        num_examples=1200, num_tokens=90_150, num_targets=31_000, longest=512, num_overlength=7, num_truncated=5
    ),
    num_measured=50,
    num_draws=3540,
    lengths=Histogram((900, 300), (8.0, 260.0, 512.0)),
)
QUIZ = TaskPart(
    name="quiz",
    summary=Summary(num_examples=400, num_tokens=4_000, num_targets=800, longest=11, num_bad=3),
    num_measured=0,
    num_draws=500,
    lengths=Histogram((400,), (9.5, 10.5)),
)
WINDOWS = (
    Window(25, (0.8, 0.2), (0.79, 0.21)),
    Window(50, (0.8, 0.2), (0.83, 0.17)),
    Window(75, (0.7, 0.3), (0.69, 0.31)),
    Window(1100, (0.6, 0.4), (0.605, 0.395)),
)
PAGE = Page(
    num_steps=1100,
    num_draws=4040,
    unit="tokens",
    is_steady=False,
    stage_starts=(0, 550),
    tasks=(TRANSLATION, QUIZ),
    quarters=WINDOWS,
    windows=WINDOWS,
    slots_used=0.9125,
    examples=(
        ExamplePart("translation", "t/17", 1042, ((PROMPT, False), (ANSWER, True), ("\n", False), (" ", True))),
        ExamplePart("quiz", "q/3", 12, (("What?", False), ("yes", True))),
    ),
    notes=("2 overlaps were found", "3 examples were left out"),
)
ALWAYS = ["Tasks", "Mixture over the run", "Lengths"]
STEADY = replace(PAGE, is_steady=True, stage_starts=(0,))


class Reader(HTMLParser):
    """Tags, attributes, and the texts of the elements that tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        """Tag, name, value."""
        self.texts: dict[str, list[str]] = {}
        """By tag, and by tag.class; what stands in an element belongs to all those around it."""
        self._around: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in UNCLOSED:
            self.open.append(tag)
            keys = [tag, *(f"{tag}.{value}" for name, value in attrs if name == "class")]
            self._around.append(keys)
            for key in keys:
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


@pytest.fixture(scope="module")
def html() -> str:
    return html_page(PAGE)


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return Reader(html)


def cells(html: str, table: int) -> list[list[str]]:
    """Rows of a table, its headings first."""
    found = re.findall(r"<table>.*?</table>", html, flags=re.DOTALL)[table]
    rows = re.findall(r"<tr>(.*?)</tr>", found)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def lines(page: Page) -> list[StepPatch]:
    axes = mixture_figure(page).axes[0]
    return [patch for patch in axes.patches if isinstance(patch, StepPatch)]


def test_every_tag_is_closed_and_the_parts_stand_in_their_order(reader: Reader) -> None:
    assert reader.open == []
    assert reader.texts["h1"] == ["Data of the run"]
    assert reader.texts["h2"] == [*ALWAYS, "Examples as the model sees them", "Notes"]
    assert reader.texts["p"][0] == "4,040 examples, repeats included, in 1,100 steps; shares are shares of tokens."
    assert reader.texts["li"] == list(PAGE.notes)


def test_what_a_page_lacks_has_no_heading() -> None:
    assert Reader(html_page(replace(PAGE, examples=(), notes=()))).texts["h2"] == ALWAYS


def test_tables_and_figures_can_be_read_without_seeing_them(html: str, reader: Reader) -> None:
    assert ("html", "lang", "en") in reader.attributes
    assert reader.values("scope").count("row") == 2 * len(PAGE.tasks)
    assert reader.values("scope").count("col") == len(cells(html, 0)[0]) + len(cells(html, 1)[0])
    assert len(reader.texts["caption"]) == 2
    assert len(reader.texts["figcaption"]) == len(reader.texts["figure"]) == 2
    assert len([value for tag, name, value in reader.attributes if (tag, name) == ("svg", "aria-label") and value]) == 2


def test_the_table_of_tasks_holds_the_numbers_of_each_task(html: str) -> None:
    headings, *rows = cells(html, 0)
    counts = "Examples, Over-long, Cut, Bad, Measured, Tokens, Mean, Longest, Trained tokens, Draws, Each example"
    assert headings == ["Task", *counts.split(", ")]
    # Means 90,150 / 1200 = 75.1 and 4,000 / 400 = 10; repeats 3540 / 1200 and 500 / 400.
    assert rows == [
        ["translation", "1,200", "7", "5", "0", "50", "90,150", "75", "512", "31,000", "3,540", "2.95 x"],
        ["quiz", "400", "0", "0", "3", "0", "4,000", "10", "11", "800", "500", "1.25 x"],
    ]


def test_changing_shares_are_told_realised_of_asked_in_each_quarter(html: str, reader: Reader) -> None:
    assert cells(html, 1) == [
        ["Task", "Steps 1-25", "Steps 26-50", "Steps 51-75", "Steps 76-1,100"],
        ["translation", "79.0% of 80.0%", "83.0% of 80.0%", "69.0% of 70.0%", "60.5% of 60.0%"],
        ["quiz", "21.0% of 20.0%", "17.0% of 20.0%", "31.0% of 30.0%", "39.5% of 40.0%"],
    ]
    assert "The shares change over the run. Stages begin at steps 1, 551." in reader.texts["figcaption"][0]


def test_steady_shares_are_asked_once() -> None:
    steady = html_page(STEADY)
    assert cells(steady, 1)[:2] == [
        ["Task", "Asked", "Steps 1-25", "Steps 26-50", "Steps 51-75", "Steps 76-1,100"],
        ["translation", "80.00%", "79.00%", "83.00%", "69.00%", "60.50%"],
    ]
    assert Reader(steady).texts["figcaption"][0].endswith("Every step asks for the same shares.")


def test_packing_is_told_where_rows_are_packed(reader: Reader) -> None:
    assert "Packing: 91.2% of the slots of packed rows hold a token." in reader.texts["p"]
    assert "Packing" not in html_page(replace(PAGE, slots_used=None))


def test_the_mixture_is_drawn_as_asked_and_as_realised_for_each_task() -> None:
    values, edges, _ = zip(*(patch.get_data() for patch in lines(PAGE)), strict=True)
    assert [list(shares) for shares in values] == [
        [0.79, 0.83, 0.69, 0.605],
        [0.8, 0.8, 0.7, 0.6],
        [0.21, 0.17, 0.31, 0.395],
        [0.2, 0.2, 0.3, 0.4],
    ]
    assert all(list(steps) == [0, 25, 50, 75, 1100] for steps in edges)
    assert mixture_figure(PAGE).axes[0].get_ylim()[0] == 0
    realised, asked = lines(PAGE)[:2]
    assert realised.get_linestyle() != asked.get_linestyle()


def test_stages_are_marked_where_they_begin() -> None:
    axes = mixture_figure(PAGE).axes[0]
    assert [set(np.asarray(line.get_xdata())) for line in axes.lines] == [{550}]
    assert [label.get_text() for label in axes.child_axes[0].get_xticklabels()] == ["stage 1", "stage 2"]
    of_one_stage = mixture_figure(STEADY).axes[0]
    assert [*of_one_stage.lines, *of_one_stage.child_axes] == []


def test_stages_that_begin_together_share_a_label() -> None:
    names = mixture_figure(replace(PAGE, stage_starts=(0, 5, 10, 500))).axes[0].child_axes[0]
    assert [label.get_text() for label in names.get_xticklabels()] == ["stages 1-3", "stage 4"]


def test_twenty_tasks_have_twenty_different_lines() -> None:
    windows = (Window(1100, (0.05,) * 20, (0.05,) * 20),)
    tasks = tuple(replace(QUIZ, name=f"task {number}") for number in range(20))
    realised = lines(replace(PAGE, tasks=tasks, windows=windows))[::2]
    assert len({(patch.get_edgecolor(), str(patch.get_linestyle())) for patch in realised}) == 20


def test_each_task_has_its_histogram_and_equal_lengths_make_one_bar() -> None:
    panels = lengths_figure(PAGE).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["translation", "quiz"]
    bars = [[bar for bar in panel.patches if isinstance(bar, Rectangle)] for panel in panels]
    boxes = [[(bar.get_x(), bar.get_width(), bar.get_height()) for bar in panel] for panel in bars]
    assert boxes == [[(8.0, 252.0, 900), (260.0, 252.0, 300)], [(9.5, 1.0, 400)]]


def test_the_figures_name_every_task(html: str) -> None:
    mixture, lengths = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    for task in PAGE.tasks:
        assert f">{task.name}</text>" in mixture
        assert f">{task.name}</text>" in lengths


def test_trained_parts_are_marked_and_white_space_is_exact(html: str, reader: Reader) -> None:
    assert reader.texts["mark.trained"] == [ANSWER, " ", "yes"]
    assert reader.texts["div.text"] == [f"{PROMPT}{ANSWER}\n ", "What?yes"]
    assert re.search(r"\.text \{[^}]*white-space: pre-wrap", html)
    assert reader.texts["h3"] == ["translation: t/17 (1,042 tokens)", "quiz: q/3 (12 tokens)"]


def test_a_carriage_return_is_written_so_that_a_browser_keeps_it(html: str) -> None:
    assert ":&#13;\n\n" in html
    assert "\r" not in html


def test_control_characters_are_pictured() -> None:
    odd = ExamplePart("quiz", "q/1", 3, (("a\0b\x1bc", True),))
    assert Reader(html_page(replace(PAGE, examples=(odd,)))).texts["mark.trained"] == ["a\u2400b\u241bc"]


def test_half_a_surrogate_pair_does_not_keep_the_page_from_being_written() -> None:
    odd = replace(PAGE.examples[0], example_id="id \ud83d")
    assert b"id \\ud83d" in html_page(replace(PAGE, examples=(odd,))).encode("utf-8")


def test_data_is_never_markup() -> None:
    task = replace(QUIZ, name=HOSTILE)
    example = ExamplePart(HOSTILE, HOSTILE, 3, ((HOSTILE, False), (HOSTILE, True)))
    page = replace(PAGE, tasks=(TRANSLATION, task), examples=(example,), notes=(HOSTILE,), unit=HOSTILE)
    html = html_page(page)
    reader = Reader(html)
    assert "<script" not in html
    assert "script" not in reader.texts
    assert reader.open == []
    assert reader.texts["mark.trained"] == reader.texts["li"] == [HOSTILE]
    assert reader.texts["h3"] == [f"{HOSTILE}: {HOSTILE} (3 tokens)"]
    assert reader.texts["text"].count(HOSTILE) == 2  # the legend, and the title of a histogram


def test_names_are_not_formulas_and_an_underscore_hides_none() -> None:
    page = replace(PAGE, tasks=(replace(TRANSLATION, name="_a $x^2$"), QUIZ))
    assert Reader(html_page(page)).texts["text"].count("_a $x^2$") == 2


def test_a_name_in_any_script_is_left_to_the_browser_without_a_warning() -> None:
    page = replace(PAGE, tasks=(replace(TRANSLATION, name="\u7ffb\u8bd1"), QUIZ))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Reader(html_page(page)).texts["text"].count("\u7ffb\u8bd1") == 2


def test_the_same_page_gives_the_same_bytes_whatever_the_settings_of_plots() -> None:
    first = html_page(PAGE)
    with matplotlib.rc_context({"font.size": 30, "axes.linewidth": 5, "svg.hashsalt": "other"}):
        assert html_page(PAGE) == first
        assert matplotlib.rcParams["font.size"] == 30


def test_ids_are_unique_and_references_stay_inside_the_page(html: str, reader: Reader) -> None:
    ids = reader.values("id")
    assert len(set(ids)) == len(ids)
    inside = [*reader.values("xlink:href"), *re.findall(r"url\((.*?)\)", html)]
    assert inside
    assert {reference.removeprefix("#") for reference in inside} <= set(ids)


def test_nothing_is_loaded_from_elsewhere(html: str, reader: Reader) -> None:
    tags = {*reader.texts, *(tag for tag, _, _ in reader.attributes)}
    assert not {"script", "link", "img", "iframe", "object"} & tags
    assert reader.values("src") == reader.values("href") == []
    assert "@import" not in html
    addresses = {name for _, name, value in reader.attributes if "://" in value}
    assert addresses == {"xmlns", "xmlns:xlink"}
    assert html.count("://") == 2 * 2  # both names of both figures
