"""A stored run, run again: from its own copies, with nothing of what lies on disk, compared in everything."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from factories import make_outcome
from PIL import Image

from gapeval_lab import reproducing
from gapeval_lab.bench import load_bench
from gapeval_lab.catalogue import available
from gapeval_lab.cli_common import wide_console
from gapeval_lab.errors import UserError
from gapeval_lab.outcome import Input, Outcome
from gapeval_lab.recipe import LoadedRecipe, load, resolve
from gapeval_lab.reproducing_compare import Comparison, compare
from gapeval_lab.reproducing_differences import circumstances, recipe_differences
from gapeval_lab.reproducing_report import draw_comparison
from gapeval_lab.run import run
from gapeval_lab.shipped import packaged
from gapeval_lab.tracking import Store
from gapeval_lab.work_folder import archive, working_folder

RECIPE = """name: again
about: a small edit
seed: 3
model: {config: embedded}
benchmark: {use: tinyworld}
judge: {use: exact}
facts: {file: FACTS, count: 1}
intervention: {use: rome, layer: 0, steps: 4}
evaluation: {limit: 4, official: false, replicates: 100}
controls: {placebo: false, identity: false}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("then")
    return make_outcome(folder), folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path, Path]]:
    """The store, the outcome's folder and the fact file of a finished edit of the shipped model."""
    home = tmp_path_factory.mktemp("home")
    facts = home / "facts.jsonl"
    facts.write_bytes((packaged("recipes") / "facts" / "world_knowledge.jsonl").read_bytes())
    loaded = resolve(RECIPE.replace("FACTS", str(facts)), source="again.yaml")
    bench, folder = load_bench(loaded), home / "mlruns"
    with working_folder(folder, bench.key) as work:
        outcome = run(bench, home=folder, work=work, on_stage=lambda _: None, on_progress=lambda *_: None)
        place = archive(work, folder / "outcomes" / outcome.run_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Store.open(home), place, facts


def test_it_runs_again_from_its_own_copies_and_takes_nothing_from_disk(
    stored: tuple[Store, Path, Path],
) -> None:
    store, place, facts = stored
    was = (place / "outcome.json").read_bytes()
    lines = facts.read_text().splitlines()
    for file in store.folder.glob("cache/responses/*/responses.jsonl"):  # whoever read these would fail
        rows = [json.loads(row) | {"text": "wrong"} for row in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cached = sorted(store.folder.glob("cache/**/*"))
    assert cached
    facts.write_text("\n".join(lines[1:]))
    found = reproducing.find_stored(place.name[:12], store)
    changed = reproducing.plan(found)
    facts.unlink()
    gone = reproducing.plan(found)
    store.check()
    early: list[dict[str, str]] = []

    def look(*_: object) -> None:
        if not early:
            ids = [identity for _, identity in store.experiments()]
            early.extend(run.data.tags for run in store.client.search_runs(ids, "status = 'RUNNING'"))

    done, differences = reproducing.reproduce(gone, store=store, on_progress=look)
    comparison, report = reproducing.told(found, done, differences, store=store)
    told = [one.told() for one in changed.differences]
    assert [line for line in told if str(facts) in line and "the copy that the run kept is taken" in line]
    assert [one.now for one in gone.differences] == ["gone"]
    assert not any(one.stops for one in (*changed.differences, *gone.differences))
    assert comparison.verdict == "Reproduced exactly" == report["verdict"]
    assert {group.name for group in comparison.items} >= {
        "after: verdicts",
        "after: answers",
        "after: pictures",
    }
    assert next(one for one in comparison.single if one.name == "delta").status == "exact"
    assert (place / "outcome.json").read_bytes() == was and done.place != place
    assert done.outcome.reproduces == place.name and done.outcome.kind == "edit"
    assert sorted(store.folder.glob("cache/**/*")) == cached and not (done.place / "alone").exists()
    tags = store.client.get_run(done.run_id).data.tags
    # Known from the start, so that a run which fails is found by them, too.
    told_first = {"kind": "edit", "method": "rome", "recipe": "again", "direction": "text"}
    assert told_first.items() <= early[0].items() and tags.items() >= told_first.items()
    assert early[0]["umm"] == tags["umm"] and early[0]["target"] == tags["target"]
    assert tags["gapeval.reproduces"] == place.name and tags["gapeval.reproduced"] == "Reproduced exactly"
    assert json.loads((done.place / "reproduction.json").read_text())["now"] == done.outcome.run_id
    logged = {entry.path for entry in store.client.list_artifacts(done.run_id)}
    assert "inputs" in logged
    for word in (done.run_id, done.run_id[:8], "rome-wk-text-L0 again"):  # MLflow's words, from the folder
        assert reproducing.find_stored(word, store).folder == done.place
    shutil.rmtree(done.place)
    found = reproducing.find_stored("rome-wk-text-L0 again", store)  # from MLflow's artifacts
    assert found.outcome == done.outcome and reproducing.copies(found.outcome, found.folder)


def test_other_data_or_weights_stop_it_before_it_runs(stored: tuple[Store, Path, Path]) -> None:
    store, place, _ = stored
    outcome = Outcome.load(place)
    other = outcome.model_copy(update={"data_hash": "0" * 64, "run_id": "other"})
    changed = reproducing.plan(reproducing.Stored(place, other))
    with pytest.raises(
        UserError, match=r"(?s)other cannot be repeated.*the 4 items: 000000000000 then.*--anyway"
    ):
        reproducing.reproduce(changed, store=store, on_progress=lambda *_: None)
    weights = outcome.model_copy(update={"weights_fingerprint": "f" * 64, "judge_settings": {"judge": "llm"}})
    loaded = reproducing.plan(reproducing.Stored(place, weights))
    asked: list[str] = []
    with pytest.raises(UserError, match=r"(?s)weights: .* then, .*judge: judge: llm then, exact now"):
        reproducing.reproduce(loaded, store=store, on_progress=lambda name, *_: asked.append(name))
    assert not asked


def test_a_copy_that_was_tampered_with_is_not_taken(stored: tuple[Store, Path, Path], tmp_path: Path) -> None:
    _, place, _ = stored
    outcome = Outcome.load(place)
    (one,) = outcome.inputs
    assert one.file is not None
    lines = (place / one.file).read_text().splitlines()
    (tmp_path / one.file).parent.mkdir(parents=True)
    (tmp_path / one.file).write_text("\n".join(reversed(lines)))
    found = reproducing.plan(reproducing.Stored(tmp_path, outcome)).differences
    assert [d.what for d in found if d.stops] == ["the 1 facts", f"the copy of {one.name}"]


@pytest.mark.parametrize("name", available())
def test_a_resolved_recipe_resolves_to_itself(name: str, pair: tuple[Outcome, Path]) -> None:
    loaded = load(name)
    again = reproducing.stored_recipe(_of(pair[0], loaded))
    assert again.hash == loaded.hash and again.text == loaded.text


def test_defaults_that_changed_and_settings_that_are_gone_are_named(pair: tuple[Outcome, Path]) -> None:
    loaded = load("rome_world_knowledge", ["intervention.layer=1"])
    outcome = _of(pair[0], loaded)
    assert list(recipe_differences(outcome, loaded.resolved)) == []
    older = json.loads(json.dumps(loaded.resolved))
    older["evaluation"]["batch"] = 7
    del older["intervention"]["steps"]
    changed = outcome.model_copy(update={"recipe": older})
    found = {
        one.what: one for one in recipe_differences(changed, reproducing.stored_recipe(changed).resolved)
    }
    assert (found["evaluation.batch"].then, found["evaluation.batch"].now) == (
        "7",
        str(loaded.recipe.evaluation.batch),
    )
    assert found["intervention.steps"].then == "unknown" and len(found) == 2
    older["intervention"]["wavelength"] = 3
    with pytest.raises(
        UserError, match=r"(?s)wavelength: unknown key.*another version; take that one \(c0ffee\)"
    ):
        reproducing.stored_recipe(outcome.model_copy(update={"recipe": older}))


def test_every_version_and_setting_of_the_machine_that_differs_is_named(pair: tuple[Outcome, Path]) -> None:
    outcome = pair[0].model_copy(
        update={
            "versions": {"torch": "1.0", "gone": "2"},
            "machine": {"torch threads": "64"},
            "code_hash": "a" * 64,
            "git_diff": "b" * 64,
        }
    )
    told = [one.told() for one in circumstances(outcome)]
    assert any(line.startswith("versions: torch: 1.0 then") for line in told)
    assert "versions: gone: 2 then, none now" in told
    assert any(line.startswith("machine: torch threads: 64 then") for line in told)
    assert any(line.startswith("code: git revision: c0ffee with changes bbbbbbbbbbbb then") for line in told)


def test_a_judge_is_asked_anew_and_so_is_each_of_a_panel(tmp_path: Path) -> None:
    judge = {"use": "llm", "model": "m", "base_url": "http://127.0.0.1:9", "key_env": None}
    data = yaml.safe_load(RECIPE.replace("FACTS", "facts/world_knowledge.jsonl"))
    data["judge"] = {"use": "panel", "judges": [judge, judge | {"model": "n"}]}
    loaded = resolve(json.dumps(data), source="panel.yaml")
    own, fresh = loaded.recipe.build("judge"), reproducing._fresh_judge(loaded, tmp_path)
    assert [member.cache for member in fresh.members.values()] == [tmp_path, tmp_path]
    assert [member.cache for member in own.members.values()] == [None, None]
    assert fresh.settings() == own.settings()


def test_the_same_is_exact_whatever_the_time_and_the_place(
    pair: tuple[Outcome, Path], tmp_path: Path
) -> None:
    outcome, folder = pair
    later = outcome.model_copy(
        update={"run_id": "x", "started": "2027", "seconds": {"fit": 9.0}, "versions": {}}
    )
    comparison = _compared(outcome, later, folder)
    assert comparison.verdict == "Reproduced exactly"
    assert not any(one.name.startswith(("time/", "memory/", "cost/")) for one in comparison.metrics)
    assert sum(group.n for group in comparison.items if group.name == "before: pictures") == 20


def test_rounding_is_told_from_a_difference(pair: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome, folder = pair
    norms = {name: norm * (1 + 1e-6) for name, norm in outcome.delta_norms.items()}
    near = _compared(outcome, outcome.model_copy(update={"delta_norms": norms}), folder)
    assert near.verdict == "Reproduced up to rounding"
    far = _compared(
        outcome,
        outcome.model_copy(update={"delta_norms": {name: 1.01 * norm for name, norm in norms.items()}}),
        folder,
    )
    assert far.status == "differs" and "metrics" in far.verdict
    (norm,) = (one for one in far.metrics if one.name == "delta_norm/total")
    assert norm.status == "differs" and norm.then != norm.now


@pytest.mark.parametrize(
    ("change", "group"),
    [
        ({"understanding": None}, "after: verdicts"),
        ({"generation": None}, "after: verdicts"),
        ({"answer": "another"}, "after: answers"),
        ({"picture": None}, "after: pictures"),
    ],
)
def test_every_item_that_differs_is_named(
    pair: tuple[Outcome, Path], change: dict[str, object], group: str
) -> None:
    outcome, folder = pair
    assert outcome.after is not None
    rows = list(outcome.after.rows)
    rows[2] = rows[2].model_copy(update=change)
    after = outcome.after.model_copy(update={"rows": rows})
    comparison = _compared(outcome, outcome.model_copy(update={"after": after}), folder)
    (seen,) = (one for one in comparison.items if one.name == group)
    assert (seen.differs, seen.first) == (1, (rows[2].id,))
    assert comparison.verdict == f"Not reproduced: 1 of {seen.n} {group} differ"
    assert rows[2].id in _printed(comparison)


def test_pictures_are_compared_by_bytes_then_by_pixels(pair: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome, folder = pair
    row = outcome.before.rows[0]
    assert row.picture is not None
    for step, status in ((0, "exact"), (1, "within"), (40, "differs")):
        for one in outcome.before.rows:
            (tmp_path / str(one.picture)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / str(one.picture)).write_bytes((folder / str(one.picture)).read_bytes())
        with Image.open(folder / row.picture) as picture:
            moved = picture.convert("RGB").point(lambda v, step=step: v + step if v < 200 else v - step)
        moved.save(tmp_path / row.picture, compress_level=0)
        seen = compare(outcome, outcome, then_folder=folder, now_folder=tmp_path)
        (group,) = (one for one in seen.items if one.name == "before: pictures")
        assert getattr(group, status) == (group.n if status == "exact" else 1)
        assert ("mean pixel distance" in group.note) == (step > 0)


def test_what_a_trial_does_not_record_is_not_missed(pair: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome, _ = pair
    rows = [row.model_copy(update={"picture": None}) for row in outcome.before.rows]
    trial = outcome.model_copy(
        update={
            "kind": "trial",
            "before": outcome.before.model_copy(update={"rows": rows}),
            "placebo": None,
            "placebo_shift": None,
            "delta_file": None,
            "delta_spectrum": {},
        }
    )
    assert _compared(trial, outcome, tmp_path).verdict == "Reproduced exactly"
    assert _compared(outcome, trial, tmp_path).status == "differs"


def test_the_published_estimator_may_move_within_its_band(pair: tuple[Outcome, Path]) -> None:
    outcome, folder = pair
    official = outcome.before.gap.official
    assert official is not None and official.band > 0.002

    def moved(by: float) -> Comparison:
        gap = dataclasses.replace(
            outcome.before.gap, official=dataclasses.replace(official, mean=official.mean + by)
        )
        before = outcome.before.model_copy(update={"gap": gap})
        return _compared(outcome, outcome.model_copy(update={"before": before}), folder)

    (seen,) = (one for one in moved(0.9 * official.band).metrics if one.name == "official/before")
    assert (seen.status, seen.note) == ("within", "within rounding band")
    (seen,) = (one for one in moved(2 * official.band).metrics if one.name == "official/before")
    assert seen.status == "differs"


def test_large_inputs_are_known_by_their_hash_alone(pair: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome = pair[0].model_copy(update={"inputs": [Input(name="a", sha256="0" * 64)]})
    assert reproducing.copies(outcome, tmp_path) == {}


def _of(outcome: Outcome, loaded: LoadedRecipe) -> Outcome:
    """An outcome with another recipe."""
    return outcome.model_copy(
        update={"recipe": loaded.resolved, "recipe_text": loaded.text, "overrides": list(loaded.overrides)}
    )


def _compared(then: Outcome, now: Outcome, folder: Path) -> Comparison:
    return compare(then, now, then_folder=folder, now_folder=folder)


def _printed(comparison: Comparison) -> str:
    console = wide_console(130)
    with console.capture() as captured:
        console.print(draw_comparison(comparison, [], then="a", now="b"))
    return captured.get()
