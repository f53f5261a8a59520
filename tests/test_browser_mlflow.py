"""MLflow's pages in a real browser: our saved views, a run, its traces beside the baseline's, its report."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from browser import MLFLOWS_OWN, browser, complaints, needs_browser, text, until
from factories import make_outcome
from mlflow_server import serve

from gapeval_lab.outcome import Outcome
from gapeval_lab.pages.run_page import write_report
from gapeval_lab.report import headline
from gapeval_lab.tracking import Store, ViewLinks, experiment_name, track, view_links
from gapeval_lab.tracking_values import note

pytestmark = needs_browser

QUESTIONS = ("Did the gap close?", "Where did it move?", "How did it get there?", "What does it draw now?")
# Of a row of the traces: of how many runs it tells, what stands under generation, and whether an arrow is
# there (a drawing beside those of the two verdicts).
DRAWN = """
const drawn = arguments[0].querySelector("[role=cell][style*=col-generation]");
return {
  runs: arguments[0].querySelectorAll("[title^=tr-]").length,
  said: drawn.innerText,
  arrow: drawn.querySelectorAll("svg").length > 2,
};
"""


@dataclass(frozen=True)
class Shown:
    """A served store with an edit and its baseline; `edit` and `baseline` are MLflow's runs."""

    driver: Any
    store: Store
    outcome: Outcome
    edit: Any
    baseline: Any
    views: ViewLinks

    def open(self, address: str, *parts: str) -> str:
        """Open a page from scratch and wait for all its parts; returns its text."""
        self.driver.get("about:blank")  # else an address with the same page would load nothing
        self.driver.get(address)
        return self.wait(*parts)

    def wait(self, *parts: str) -> str:
        def missing() -> list[str]:
            shown = text(self.driver)
            return [part for part in parts if part not in shown]

        try:
            until(f"{parts}", lambda: not missing())
        except AssertionError as error:
            raise AssertionError(f"{missing()} not in: {text(self.driver)[:2000]}") from error
        return text(self.driver)

    @property
    def page(self) -> str:
        """The edit's page."""
        return f"{self.store.uri}/#/experiments/{self.edit.info.experiment_id}/runs/{self.edit.info.run_id}"

    @property
    def flipped(self) -> list[str]:
        """Items that are drawn right now and were not."""
        assert self.outcome.after is not None
        rows = zip(self.outcome.before.rows, self.outcome.after.rows, strict=True)
        return [old.id for old, new in rows if (old.generation, new.generation) == (False, True)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    place = tmp_path_factory.mktemp("mlflow")
    with (
        pytest.MonkeyPatch.context() as patch,
        serve(place / "server") as port,
        browser(place / "profile", width=1800, height=1000) as driver,
    ):
        # Some of the server's code asks for the process's own store, which would be made in this folder.
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'server' / 'server.db'}")
        store = Store(place, f"http://127.0.0.1:{port}")
        store.check()
        folder = place / "outcome"
        folder.mkdir()
        outcome = make_outcome(folder, per_category=3)
        write_report(outcome, folder)
        with track(store, "edit", experiment=experiment_name(outcome.umm), key="edit") as live:
            live.log(outcome, folder, patient=True)
        edit = store.client.get_run(live.run_id)
        baseline = store.client.get_run(edit.data.tags["gapeval.baseline_run_id"])
        (views,) = view_links(store, store.uri)
        yield Shown(driver, store, outcome, edit, baseline, views)


@pytest.fixture(autouse=True)
def no_errors(shown: Shown) -> Iterator[None]:
    complaints(shown.driver)
    yield
    assert complaints(shown.driver, but=MLFLOWS_OWN) == []


def test_the_saved_leaderboard_opens_on_both_runs_in_order(shown: Shown) -> None:
    names = (shown.edit.info.run_name, "baseline")
    said = shown.open(shown.views.leaderboard, *names, "2 matching runs", "0 · Leaderboard", "-0.142")
    assert "Lower Gap Score is better" in said and "Sort: delta/gap_score" in said
    assert said.index(names[0]) < said.index("\nbaseline")  # a baseline has no shift, so it is last
    for part in ("before/gap_score", "after/gap_score", "delta/on_target", "delta/off_target", "method"):
        assert part in said
    for value in ("0.599", "0.569", "-0.03", "-0.142", "rome"):
        assert value in said.split("\n")


def test_the_saved_charts_ask_their_questions(shown: Shown) -> None:
    said = shown.open(shown.views.gap_shift, *QUESTIONS, "1 · Gap shift (charts)", "delta/gap_score")
    assert "Did the edit take, in both directions?" in said
    assert shown.edit.info.run_name in said
    bars = "return document.querySelectorAll('.js-plotly-plot .bars path').length"
    assert until("bars of the first charts", lambda: shown.driver.execute_script(bars)) >= 4


def test_the_runs_page_begins_with_the_verdict(shown: Shown) -> None:
    from selenium.webdriver.common.by import By

    said = shown.open(f"{shown.page}?workflowType=machine_learning", "Gap closed: 0.599", "world_knowledge")
    written = note(shown.outcome, links={})
    verdict = written.splitlines()[0]
    assert verdict.startswith("**") and verdict.strip("*") in said
    bold = [one.text for one in shown.driver.find_elements(By.CSS_SELECTOR, "strong")]
    assert verdict.strip("*") in bold
    assert "delta/gap_score" in said and re.search(r"verdict\s*:\s*gap closed", said)


def test_every_item_stands_beside_the_baselines_and_opens_with_both_pictures(shown: Shown) -> None:
    """By the link in the run's description, as a person comes there."""
    from selenium.webdriver.common.by import By

    driver, items = shown.driver, shown.outcome.before.rows
    shown.open(f"{shown.page}?workflowType=machine_learning", "See every item beside the baseline's")
    driver.set_window_size(1800, 1800)  # rows out of sight are not there
    link = driver.find_element(By.LINK_TEXT, "See every item beside the baseline's").get_attribute("href")
    ids = [row.id for row in items]
    said = shown.open(link, f"{len(items)} of {len(items)}", "compare to", "baseline", *ids)
    assert shown.edit.info.run_name in said
    rows = {
        item: driver.find_element(By.XPATH, f"//*[@role='row'][contains(., '\"item\": \"{item}\"')]")
        for item in ids
    }
    drawn = {item: driver.execute_script(DRAWN, row) for item, row in rows.items()}
    assert shown.outcome.after is not None
    for old, new in zip(items, shown.outcome.after.rows, strict=True):
        assert drawn[old.id]["runs"] == 2, old.id
        assert drawn[old.id]["said"].split() == [str(new.generation), str(old.generation)], old.id
    assert shown.flipped == [item for item, found in drawn.items() if found["arrow"]]

    item = shown.flipped[0]
    rows[item].find_element(By.TAG_NAME, "a").click()
    shown.wait("Comparing 2 traces", "Inputs", "Outputs")
    loaded = """
    return [...document.querySelectorAll("[role=dialog] img")].filter((one) => one.naturalWidth >= 160)
      .map((one) => one.currentSrc);
    """
    until("both pictures", lambda: len(driver.execute_script(loaded)) == 2)
    assert len(set(driver.execute_script(loaded))) == 2


def test_the_report_among_the_artifacts_works(shown: Shown) -> None:
    from selenium.webdriver.common.by import By

    driver = shown.driver
    shown.open(f"{shown.page}/artifacts/report.html?workflowType=machine_learning", "outcome.json")
    frame = until("the report's frame", lambda: driver.find_element(By.CSS_SELECTOR, "iframe#html"))
    driver.switch_to.frame(frame)
    try:
        until("its headline", lambda: driver.find_element(By.TAG_NAME, "h1").text == headline(shown.outcome))
        count = driver.find_element(By.CSS_SELECTOR, ".shown")
        total = len(shown.outcome.before.rows)
        assert count.text == f"{total} of {total} items"
        driver.find_element(By.CSS_SELECTOR, ".filters input").send_keys(shown.flipped[0])
        assert count.text == f"1 of {total} items"
    finally:
        driver.switch_to.default_content()
