"""report.html in a real browser: the verdict is seen, nothing is complained about, and the search finds."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tests.report_rows import PROSE, QUIZ, REVIEWS, report_of
from trainer.evaluation.report import write_report
from trainer.report_html import write_html

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium chromium-driver)"
)
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    driver.set_page_load_timeout(WAIT_SECONDS)
    driver.set_script_timeout(WAIT_SECONDS)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, tmp_path: Path) -> webdriver.Chrome:
    write_report(tmp_path / "report.json", report_of(REVIEWS, PROSE, QUIZ))
    browser.get(write_html(tmp_path).as_uri())
    return browser


def shown(page: webdriver.Chrome) -> list[str]:
    """Texts of the lost examples that can be seen."""
    found = page.find_elements(By.CSS_SELECTOR, "details.example")
    return [one.get_attribute("textContent") or "" for one in found if one.is_displayed()]


def test_the_verdict_is_the_first_thing_to_be_seen(page: webdriver.Chrome) -> None:
    heading = page.find_element(By.CSS_SELECTOR, ".overall.REGRESSED .answer")
    assert heading.is_displayed()
    assert "measurably lost: prose" in heading.text
    assert "REGRESSED" in page.find_element(By.TAG_NAME, "main").text
    assert heading.location["y"] < page.get_window_size()["height"]
    assert page.find_elements(By.TAG_NAME, "svg")


def test_the_browser_complains_about_nothing(page: webdriver.Chrome) -> None:
    assert page.get_log("browser") == []


def test_the_search_finds_lost_examples_by_their_words_and_by_capability(page: webdriver.Chrome) -> None:
    assert len(shown(page)) == 3
    words = page.find_element(By.ID, "words")
    words.send_keys("peru")
    (found,) = shown(page)
    assert "Lima" in found
    assert page.find_element(By.ID, "told").text == "1 of 3 shown"
    words.send_keys(" nowhere")
    assert shown(page) == []
    words.clear()
    words.send_keys("<SCRIPT>")
    assert len(shown(page)) == 1
    words.clear()
    Select(page.find_element(By.ID, "which")).select_by_visible_text("knowledge")
    assert len(shown(page)) == 3


def test_a_complaint_of_the_browser_would_be_seen(page: webdriver.Chrome) -> None:
    page.execute_script("console.error('planted')")
    assert ["planted" in entry["message"] for entry in page.get_log("browser")] == [True]
