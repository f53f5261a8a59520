"""The page of one run: what stands in it, that it holds together, and that nothing breaks out of it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import make_outcome, without_after
from page_outcomes import HOSTILE, full_outcome, hostile_outcome, one_sided_outcome
from page_reader import PageReader, Shown, wrong_numbers
from PIL import Image

from gapeval_lab import cli
from gapeval_lab.outcome import Outcome
from gapeval_lab.pages import gallery
from gapeval_lab.pages.numbers import Numbers, marked, plain
from gapeval_lab.pages.run_page import answer, run_page, write_report
from gapeval_lab.report import (
    control_data,
    gap_data,
    headline,
    quality_data,
    shift_data,
)
from gapeval_lab.report_protocols import protocol_data
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_values import curves


def baseline_outcome(folder: Path) -> Outcome:
    outcome = without_after(make_outcome(folder))
    outcome.save(folder)
    return outcome


KINDS: dict[str, Callable[[Path], Outcome]] = {
    "edit": make_outcome,
    "full": full_outcome,
    "baseline": baseline_outcome,
    "one-sided": one_sided_outcome,
    "hostile": hostile_outcome,
}
SECTIONS = {
    "edit": "gap accuracy cells edit untouched controls gallery course audit record",
    "full": "gap accuracy cells edit untouched controls gallery course protocols smallest audit record",
    "baseline": "gap accuracy cells gallery record",
    "one-sided": "gap accuracy edit untouched gallery course audit record",
    "hostile": "gap accuracy cells edit gallery course audit record",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Outcome, Path, PageReader]]:
    """Each kind of outcome with its folder and its page."""
    found = {}
    for kind, make in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        outcome = make(folder)
        found[kind] = (outcome, folder, PageReader(run_page(outcome, folder)))
    return found


def logged(outcome: Outcome) -> dict[str, dict[int, float]]:
    """What would be logged; that it is, is for `test_tracking` to see."""
    flat = {key: {0: value} for key, value in scalars(outcome).items()}
    return flat | {key: dict(points) for key, points in curves(outcome).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_run_has_a_page_that_holds_together(made, kind: str) -> None:
    outcome, folder, page = made[kind]
    assert page.problems == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert [found["id"] for name, found in page.tags if name == "section"] == SECTIONS[kind].split()
    links = [found["href"] for name, found in page.tags if name == "a"]
    assert {link[1:] for link in links} <= set(ids)
    labelled = [found["aria-labelledby"] for _, found in page.tags if "aria-labelledby" in found]
    assert set(labelled) <= set(ids)
    assert ("html", {"lang": "en"}) in page.tags and {"charset": "utf-8"} in [a for _, a in page.tags]
    assert all(found.get("alt") for name, found in page.tags if name == "img")
    assert all(found.get("aria-label") for _, found in page.tags if found.get("role") == "img")
    assert plain(answer(Numbers(outcome))) == headline(outcome)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fetches_nothing_and_forbids_it(made, kind: str) -> None:
    _, _, page = made[kind]
    policy = [found["content"] for name, found in page.tags if "http-equiv" in found]
    assert policy and policy[0].startswith("default-src 'none'; img-src data:;")
    for name, found in page.tags:
        for key in ("src", "srcset", "href", "xlink:href", "action", "data", "poster"):
            value = found.get(key)
            assert value is None or value.startswith(("#", "data:image/")), (name, value)
        assert name not in ("link", "iframe", "object", "embed", "base")
    styles = re.findall(r"url\(([^)]*)\)|@import", page.html)
    assert all(one.startswith("#") for one in styles)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_the_one_in_the_record(made, kind: str) -> None:
    outcome, folder, page = made[kind]
    assert wrong_numbers(page, folder / "outcome.json", logged(outcome)) == []
    assert len(page.numbers) > 30


def test_a_wrong_number_is_seen(made) -> None:
    """The test above can fail: one digit in the page, or one number in the record, is enough."""
    outcome, folder, page = made["edit"]
    at = page.html.index('data-path="/shift/gap/value"')
    start = page.html.index(">", at) + 1
    altered = page.html[:start] + page.html[start:].replace("0.030", "0.031", 1)
    problem = wrong_numbers(PageReader(altered), folder / "outcome.json", logged(outcome))[0]
    assert "/shift/gap/value" in problem and "in outcome.json" in problem
    other = logged(outcome) | {"placebo/gap_score": {0: 9.0}}
    (problem,) = wrong_numbers(page, folder / "outcome.json", other)
    assert "/placebo/gap/gap/value" in problem and "9.0 in MLflow" in problem
    assert wrong_numbers(PageReader('<p><span class="n">1</span>'), folder / "outcome.json", logged(outcome))


def test_numbers_say_what_they_are_called_in_mlflow(made) -> None:
    """Every metric of a run stands in its page, but for those that are computed for MLflow alone."""
    for kind in ("edit", "full"):
        outcome, _, page = made[kind]
        missing = set(scalars(outcome)) - {one.metric for one in page.numbers}
        assert {name.split("/")[0] for name in missing} <= {"delta_norm", "delta_rank", "cost", "official"}
        assert missing & {"delta/on_target", "official/before"} == set()


def test_the_page_shows_what_the_terminal_shows(made) -> None:
    outcome, _, page = made["full"]
    text = " ".join("".join(page.texts.values()).split())
    assert outcome.shift and outcome.quality
    rows = shift_data(outcome, outcome.shift) + control_data(outcome) + protocol_data(outcome.quality)
    cells = {cell for row in rows for cell in row.cells if cell and "→" not in cell}
    cells |= {cell for row in quality_data(outcome.quality) for cell in row.cells}
    assert {cell for cell in cells if cell not in text} == set()
    outcome, _, page = made["baseline"]
    text = " ".join("".join(page.texts.values()).split())
    cells = {cell for row in gap_data(outcome.before.gap) for cell in row.cells}
    parts = {cell for cell in cells if cell and "/" not in cell and "unscored" not in cell}
    assert {cell for cell in parts if cell not in text} == set()


def test_nothing_that_a_model_says_breaks_out(made) -> None:
    outcome, _, page = made["hostile"]
    scripts = [found for name, found in page.tags if name == "script"]
    assert len(scripts) == 1 and not [found for _, found in page.tags if "onerror" in found]
    assert "{{ 7 * 7 }}" in page.texts["gallery"]
    cards = page.texts["gallery"].count(HOSTILE)
    assert cards >= 5 * len(outcome.before.rows)
    assert HOSTILE in page.texts["record"] and HOSTILE in page.texts["gap"]


def test_the_same_run_gives_the_same_bytes(made) -> None:
    outcome, folder, page = made["full"]
    assert run_page(Outcome.load(folder), folder) == page.html


def test_pictures_lie_in_the_page_and_lost_ones_are_counted(made, tmp_path: Path) -> None:
    outcome, folder, page = made["edit"]
    data = page.attributes("src")
    # One that did not change is there once.
    kept = sum(
        (folder / old.picture).read_bytes() == (folder / new.picture).read_bytes()
        for old, new in zip(outcome.before.rows, outcome.after.rows, strict=True)
    )
    assert 0 < kept < len(outcome.before.rows) and len(data) == 2 * len(outcome.before.rows) - kept
    assert all(one.startswith("data:image/png;base64,") for one in data)
    bare = PageReader(run_page(outcome, tmp_path))
    assert bare.attributes("src") == []
    assert "40 pictures are no longer in the run's folder" in bare.texts["gallery"]


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    Image.effect_noise((800, 400), 60).save(tmp_path / "large.png")
    found = gallery.shot(tmp_path / "large.png")
    assert found is not None and (found.width, found.height) == (256, 128)
    assert found.data.startswith("data:image/webp;base64,") and len(found.data) < 30_000
    (tmp_path / "text.png").write_text("no picture")
    assert gallery.shot(tmp_path / "text.png") is None


def test_a_large_gallery_keeps_what_changed_and_says_so(made) -> None:
    outcome, folder, _ = made["edit"]
    found = gallery.pairs(outcome)
    changed = [pair for pair in found if pair.flipped_image or pair.flipped_text]
    chosen = gallery.sample(found, len(changed) + 3)
    assert chosen[: len(changed)] == changed and len(chosen) == len(changed) + 3
    assert len({pair.before.id for pair in chosen}) == len(chosen)
    assert gallery.sample(found, 999) == changed + [pair for pair in found if pair not in changed]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "MOST", len(changed) + 3)
        section = gallery.gallery(Numbers(outcome), folder)
    assert section is not None
    assert f"{len(chosen)} of {len(found)} items are shown" in str(section.blocks[0])


def test_filters_count_what_they_would_show(made) -> None:
    outcome, folder, page = made["edit"]
    pairs = gallery.sample(gallery.pairs(outcome), 999)
    facets = {facet.label: dict(facet.options) for facet in gallery.facets(pairs)}
    gained = sum(pair.before.generation is False and pair.after.generation is True for pair in pairs)
    assert facets["Drawn"]["gained"] == facets["Drawn"]["changed"] == gained > 0
    assert sum(facets["Category"].values()) == sum(facets["Right in"].values()) == len(pairs)
    assert facets["Told"]["not scored"] == 1 and "changed" not in facets["Told"]
    assert set(facets["Answer"]) == {"red", "blue"}
    # Each card holds the places of its values.
    labels = [facet.label for facet in gallery.facets(pairs)]
    for pair, card in zip(pairs, gallery.cards(pairs, folder), strict=True):
        options = list(facets["Category"])
        (place,) = card.places[labels.index("Category")]
        assert options[place] == pair.before.category.replace("_", " ")
    cards = [found["data-f"] for name, found in page.tags if name == "article"]
    assert len(cards) == len(pairs) and all(re.fullmatch(r"\d+(,\d+)*( \d+(,\d+)*)*", one) for one in cards)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (True, False, ("changed", "lost")),
        (False, True, ("changed", "gained")),
        (True, True, ("still right",)),
        (False, False, ("still wrong",)),
        (None, True, ("not scored",)),
        (False, None, ("not scored",)),
    ],
)
def test_what_became_of_a_verdict(old, new, words) -> None:
    assert gallery.change(old, new) == words


def test_a_sentence_takes_numbers_only_where_it_shows_them(made) -> None:
    outcome, _, _ = made["edit"]
    assert (
        plain(marked("from 0.599 on", Numbers(outcome).one("before", "gap", "gap", "value")))
        == "from 0.599 on"
    )
    with pytest.raises(ValueError, match=r"'0\.599' is not in the sentence"):
        marked("nothing here", Numbers(outcome).one("before", "gap", "gap", "value"))


def test_an_identity_that_moved_something_is_a_warning(made) -> None:
    outcome, folder, page = made["full"]
    assert "moved nothing at all" in page.texts["controls"]
    moved = outcome.model_copy(update={"identity_shift": outcome.shift, "reverted": False})
    other = PageReader(run_page(moved, folder))
    assert "trust no number here" in other.texts["controls"]
    assert "NOT restored" in other.texts["record"]


def test_the_file_is_written_beside_the_record_or_where_it_is_asked_for(made, tmp_path: Path) -> None:
    outcome, folder, page = made["edit"]
    assert write_report(outcome, folder) == folder / "report.html"
    assert (folder / "report.html").read_text(encoding="utf-8") == page.html
    assert write_report(outcome, folder, to=tmp_path / "new" / "a.html").is_file()


def test_the_command_writes_the_page_of_a_stored_run(made, tmp_path: Path, monkeypatch, capsys) -> None:
    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["gapeval-lab", "report", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    outcome, folder, page = made["baseline"]
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path))
    shutil.copytree(folder, tmp_path / "mlruns" / "outcomes" / outcome.run_id)
    assert call() == 0
    file = tmp_path / "mlruns" / "outcomes" / outcome.run_id / "report.html"
    assert file.read_text(encoding="utf-8") == page.html
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)))
    assert call(str(folder), "--out", str(tmp_path / "b.html"), "--open") == 0
    assert opened == [(tmp_path / "b.html").as_uri()]
    said = capsys.readouterr().out
    assert "b.html (0." in said and "open the file by hand" in said
    assert call("nothing") == 2 and "'nothing' is no finished run" in capsys.readouterr().err


def test_shown_numbers_know_their_last_digit() -> None:
    assert Shown("−0.030").value == -0.03 and Shown("−0.030").half == pytest.approx(0.0005)
    assert Shown("1.5e-05").half == pytest.approx(5e-7) and Shown("12").half == pytest.approx(0.5)
