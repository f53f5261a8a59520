"""Runs side by side and in pairs, by the names that people give them; pages that show the same."""

import json
from pathlib import Path

import pytest
from factories import make_outcome, without_after
from run_store import call, database, log, put, verdicts

from gapeval_lab import cli
from gapeval_lab.comparing import compare
from gapeval_lab.comparing_runs import Run
from gapeval_lab.comparing_runs import resolve as resolve_all
from gapeval_lab.comparing_tables import remarks, setting_words
from gapeval_lab.errors import UserError
from gapeval_lab.gap.shift import mcnemar
from gapeval_lab.leaderboard import leaderboard
from gapeval_lab.leaderboard_list import listed
from gapeval_lab.outcome import Outcome
from gapeval_lab.summaries import NAME, Summary, summarise, summary_of
from gapeval_lab.tracking_find import Entry, entries, find_run
from gapeval_lab.tracking_store import Store

IDS = ("rome_world_knowledge-20261121T100000-aaa111", "rome_world_knowledge-20261121T110000-bbb222")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path))
    return Store.open(tmp_path)


def resolve(refs: list[str], store: Store) -> list[Run]:
    return resolve_all(refs, store)[0]


def runs(*outcomes: Outcome, tmp_path: Path) -> list[Run]:
    return [
        Run(Entry(o.run_id, o.run_id, "FINISHED", o.kind, 0.0, None, None), summarise(o), tmp_path)
        for o in outcomes
    ]


def test_a_summary_holds_what_the_outcome_does_and_follows_it(tmp_path: Path) -> None:
    outcome = make_outcome(tmp_path)
    made = summary_of(tmp_path)
    assert (made.shift, made.placebo_shift, made.states["after"].gap) == (
        outcome.shift,
        outcome.placebo_shift,
        outcome.after.gap if outcome.after else None,
    )
    for phase in ("before", "after", "placebo"):
        rows = getattr(outcome, phase).rows
        assert [(v.category, v.understanding, v.generation) for v in made.verdicts(phase)] == [
            (row.category, row.understanding, row.generation) for row in rows
        ]
    kept = (tmp_path / NAME).read_text()
    assert summary_of(tmp_path) == made == Summary.model_validate_json(kept)
    outcome.model_copy(update={"seed": 77}).save(tmp_path)
    assert summary_of(tmp_path).seed == 77
    (tmp_path / NAME).write_text("{}")  # of another version, or broken
    assert summary_of(tmp_path).seed == 77


def test_an_outcome_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text("{")
    with pytest.raises(UserError, match=r"outcome.json cannot be read"):
        summary_of(tmp_path)


def test_pairs_by_hand(tmp_path: Path) -> None:
    one = make_outcome(tmp_path)
    assert one.after is not None
    known = {row.id: row for row in one.after.rows}
    wrong = [
        name for name, row in known.items() if row.generation is False and row.understanding is not None
    ][:3]
    right = [name for name, row in known.items() if row.generation is True and row.understanding is not None][
        :1
    ]
    flips = {name.replace("-", "_"): (bool(known[name].understanding), True) for name in wrong}
    flips |= {name.replace("-", "_"): (bool(known[name].understanding), False) for name in right}
    two = one.model_copy(update={"run_id": "two", "after": verdicts(one.after, **flips)})
    three = one.model_copy(update={"run_id": "three"})
    found = compare(runs(one, two, three, tmp_path=tmp_path))
    pair, same = found.pairs
    assert (pair.number, pair.reference, pair.compared, pair.items) == (2, 1, "shifts", 20)
    assert pair.scored == 19  # one item of the first category is not scored in one direction
    assert pair.generation is not None and pair.understanding is not None and same.generation is not None
    assert (pair.generation.gained, pair.generation.lost) == (3, 1)
    assert pair.generation.p == pytest.approx(mcnemar(3, 1)) == pytest.approx(0.625)
    assert pair.generation.p_holm == 1.0 == same.generation.p_holm  # Holm over two runs: 2 x 0.625 is above 1
    assert (pair.understanding.gained, pair.understanding.lost) == (0, 0)
    assert pair.gap is not None and pair.shift is not None and same.gap is not None
    assert pair.shift.value == pytest.approx(pair.gap.value)  # before was the same
    assert (same.gap.value, same.gap.low, same.gap.high) == (0, 0, 0)
    assert pair.reasons == []


def test_what_differed_before_is_taken_off_and_told(tmp_path: Path) -> None:
    one = make_outcome(tmp_path)
    row = next(row for row in one.before.rows if row.understanding is not None and not row.generation)
    other = verdicts(one.before, **{row.id.replace("-", "_"): (bool(row.understanding), True)})
    found = compare(runs(one, one.model_copy(update={"before": other, "seed": 1}), tmp_path=tmp_path))
    (pair,) = found.pairs
    assert pair.compared == "shifts" and "1 items answered otherwise" in pair.reasons[0]
    assert pair.gap is not None and pair.gap.value == 0
    assert pair.shift is not None and pair.shift.value != 0


@pytest.mark.parametrize(
    ("changes", "compared", "said"),
    [
        ({"judge": {"use": "vision"}}, "nothing", "judged by others"),
        ({"judge": {"use": "exact", "strict": True}}, "nothing", "exact, set otherwise"),
        ({"umm": "other"}, "after", "other models"),
        ({"weights_fingerprint": "77" * 32}, "after", "with other weights"),
        ({"data_hash": "99" * 32}, "shifts", "on the 20 that are in both"),
        ({"question": "Else?"}, "nothing", "no item in common"),
        ({"kind": "baseline"}, "after", "changed nothing"),
    ],
)
def test_what_cannot_be_compared_has_a_reason_instead_of_numbers(tmp_path, changes, compared, said) -> None:
    one = make_outcome(tmp_path)
    two = one
    if "judge" in changes:
        two = one.model_copy(update={"recipe": one.recipe | changes})
    elif "question" in changes:
        rows = [row.model_copy(update=changes) for row in one.before.rows]
        two = one.model_copy(
            update={"before": one.before.model_copy(update={"rows": rows}), "data_hash": "0"}
        )
    elif "kind" in changes:
        two = without_after(one)
    else:
        two = one.model_copy(update=changes)
    found = compare(runs(one, two, tmp_path=tmp_path))
    (pair,) = found.pairs
    assert pair.compared == compared
    assert said in pair.reasons[0]
    assert (pair.gap is None) == (compared == "nothing")
    assert (pair.shift is None) == (compared != "shifts")
    assert any(said in line for line in remarks(found))


def test_seeds_of_one_recipe_are_pooled_and_settings_that_differ_told(tmp_path: Path) -> None:
    one = make_outcome(tmp_path)
    assert one.shift is not None and one.shift.gap is not None
    moved = one.shift.gap.value

    def seeded(seed: int, shift: float) -> Outcome:
        assert one.shift is not None and one.shift.gap is not None
        gap = type(one.shift.gap)(shift, shift, shift)
        recipe = one.recipe | {"seed": seed}
        changed = type(one.shift)(**{**one.shift.__dict__, "gap": gap})
        return one.model_copy(update={"seed": seed, "recipe": recipe, "shift": changed})

    other = one.model_copy(update={"recipe": one.recipe | {"intervention": {"use": "rome", "layers": [3]}}})
    found = compare(runs(one, seeded(1, moved + 0.02), other, tmp_path=tmp_path))
    (pooled,) = found.pooled
    assert (pooled.numbers, pooled.seeds) == ([1, 2], [0, 1])
    assert pooled.means["gap shift"].value == pytest.approx(moved + 0.01)
    assert pooled.means["gap shift"].high - moved - 0.01 == pytest.approx(12.7062 * 0.01, rel=1e-4)  # t, 1 df
    told = {one.path: one.values for one in found.settings}
    assert told == {"intervention.layers": ["[2]", "[2]", "[3]"], "intervention.lr": ["0.5", "0.5", None]}


def test_settings_that_only_one_method_knows_are_counted_not_listed(tmp_path: Path) -> None:
    one = make_outcome(tmp_path)
    other = one.model_copy(update={"recipe": one.recipe | {"intervention": {"use": "lora", "rank": 4}}})
    found = compare(runs(one, other, tmp_path=tmp_path))
    words = setting_words(found)
    assert [label for label, _ in words.lines] == ["intervention.use"]
    assert words.note.startswith("and 3 settings")
    assert len(setting_words(found, own=True).lines) == 4


def test_runs_by_the_names_that_people_give_them(store: Store, tmp_path: Path) -> None:
    put(store, IDS[0])
    put(store, IDS[1], seed=1)
    put(store, "lora_x-20261121T120000-ccc333")
    both = [run.entry.id for run in resolve(["rome_world_knowledge"], store)]
    assert both == list(IDS)
    newer = "rome_world_knowledge-20261121T130000-ddd444"
    put(store, newer)  # of seed 0, too
    assert [run.entry.id for run in resolve(["rome_world_knowledge"], store)] == [newer, IDS[1]]
    for ref in (
        IDS[0],
        IDS[0][:33],
        str(store.folder / "outcomes" / IDS[0]),
        f"{store.folder}/outcomes/{IDS[0]}/outcome.json",
    ):
        assert [run.entry.id for run in resolve([ref], store)] == [IDS[0]]
    assert [run.entry.id for run in resolve(["last", newer, "lora"], store)] == [
        newer,
        "lora_x-20261121T120000-ccc333",
    ]
    with pytest.raises(UserError, match="fits 3 runs"):
        resolve(["rome_wor"], store)
    with pytest.raises(UserError, match="did you mean"):
        resolve(["rome_world_knowlege"], store)


def test_a_run_is_the_same_by_every_word_for_it(store: Store, tmp_path: Path) -> None:
    put(store, IDS[0])
    put(store, IDS[1])
    made = database(store)
    log(made, "a1b2c3" + "0" * 26, tags={"gapeval.outcome": IDS[0], "kind": "edit"})
    log(made, "d" * 32, status="FAILED", tags={"kind": "edit"})
    folder = store.folder / "outcomes" / IDS[0]
    words = [IDS[0], IDS[0][:-2], str(folder), f"{folder}/outcome.json"]
    words += ["a1b2c3" + "0" * 26, "a1b2c3", "name-a1b2c3" + "0" * 26]
    assert {find_run(word, store) for word in words} == {folder}
    assert {run.place for word in words for run in resolve([word], store)} == {folder}
    for word, said in (
        ("rome_wor", "fits 2 runs"),
        ("nothing", "is no finished run"),
        ("d" * 32, "no outcome"),
        ("name-" + "d" * 32, "no outcome"),
    ):
        for find in (find_run, lambda ref, where: resolve([ref], where)):
            with pytest.raises(UserError, match=said):
                find(word, store)
    alone = (folder / "outcome.json").rename(tmp_path / "mine.json")
    assert find_run(str(alone), store, alone=True) == alone
    with pytest.raises(UserError, match="without what lies beside it"):
        find_run(str(alone), store)
    # With no server, what lies on this disk is found, compared and listed.
    away = Store(store.root, "http://127.0.0.1:9")
    put(store, IDS[0] + "x")
    assert find_run(IDS[1], away) == store.folder / "outcomes" / IDS[1]
    assert len(resolve(["rome_world_knowledge"], away)) == 1
    assert len(listed(away).lines) == 2 and "no answer" in listed(away).note
    with pytest.raises(UserError, match="cannot be asked"):
        find_run("nothing", away)


def test_repetitions_are_no_further_seeds(store: Store, capsys) -> None:
    put(store, IDS[0])
    put(store, IDS[1], seed=1, reproduces=IDS[0])
    runs_, repeated = resolve_all(["rome_world_knowledge"], store)
    assert [run.entry.id for run in runs_] == [IDS[0]] and repeated == 1
    assert [run.entry.id for run in resolve([IDS[1]], store)] == [IDS[1]]
    board = leaderboard(store)
    assert [place.run_id for place in board.lists[0].places] == [IDS[0]] and board.repeated == 1
    tags = {"gapeval.outcome": IDS[1], "gapeval.reproduces": IDS[0], "kind": "edit"}
    log(database(store), "e" * 32, tags=tags)
    assert leaderboard(store).repeated == 1
    chosen = leaderboard(store, where=f"tags.`gapeval.reproduces` = '{IDS[0]}'")
    assert [place.run_id for place in chosen.lists[0].places] == [IDS[1]] and not chosen.repeated
    assert dict(listed(store).lines)[IDS[1]][-1] == "finished, a repetition"
    assert call("leaderboard") == 0
    assert "left out: 1 repetition by reproduce" in capsys.readouterr().out


def test_mlflow_and_the_disk_are_one_list(store: Store, tmp_path: Path) -> None:
    put(store, IDS[0])
    put(store, IDS[1])
    made = database(store)
    tags = {"gapeval.outcome": IDS[0], "kind": "edit", "recipe": "rome_world_knowledge", "gapeval.key": "k"}
    log(made, "a" * 32, tags=tags, params={"seed": "0"})
    log(made, "b" * 32, tags=tags | {"kind": "baseline", "recipe": "baseline", "gapeval.key": "baseline-f"})
    log(made, "c" * 32, status="FAILED", tags={"gapeval.end": "ValueError: no"})
    found = {entry.id: entry for entry in entries(store)}
    assert len(entries(store)) == 4
    assert found[IDS[1]].logged is None and found["c" * 32].status == "FAILED"
    # The baseline that the edit logged beside itself is the model as it was.
    edit, base = resolve([IDS[0], "name-" + "b" * 32], store)
    assert "after" in edit.summary.states and list(base.summary.states) == ["before"]
    assert base.summary.kind == "baseline" and base.summary.shift is None
    assert [run.entry.logged.run_id[0] for run in resolve(["aaaaaa"], store) if run.entry.logged] == ["a"]
    with pytest.raises(UserError, match=r"has no outcome.*failed"):
        resolve(["c" * 32], store)


def test_an_outcome_among_mlflows_artifacts_is_enough(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "artifacts"
    elsewhere.mkdir()
    make_outcome(elsewhere)
    made = database(store)
    tags = {"gapeval.outcome": "rome-0", "kind": "edit"}
    log(made, "d" * 32, tags=tags, artifacts={"uri": elsewhere.as_uri()})
    (run,) = resolve(["name-" + "d" * 32], store)
    assert run.place == elsewhere and run.summary.run_id == "rome-0"


def test_the_command_prints_and_writes_the_same_numbers(store: Store, tmp_path: Path, capsys) -> None:
    one = put(store, IDS[0])
    assert one.after is not None
    row = next(row for row in one.after.rows if row.generation is False and row.understanding)
    two = verdicts(one.after, **{row.id.replace("-", "_"): (True, True)})
    put(store, IDS[1], one, after=two, seed=1, recipe=one.recipe | {"seed": 1})
    page, numbers = tmp_path / "c.html", tmp_path / "c.json"
    assert call("compare", "rome_world_knowledge", "--html", str(page), "--json", str(numbers)) == 0
    printed, html, told = capsys.readouterr().out, page.read_text(), json.loads(numbers.read_text())
    assert told["pairs"][0]["generation"]["gained"] == 1
    assert "(+1 −0)" in printed and "(+1 −0)" in html
    shift = f"{told['rows'][0]['shift']['value']:+.3f}".replace("-", "−")
    assert shift in printed and shift in html
    assert html.count('<article class="card"') == 1 and row.id in html and "data:image" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert call("compare", IDS[1], IDS[0], "--baseline", IDS[0]) == 0
    assert "Against run 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare"], "name runs or recipes"),
        (["compare", IDS[0]], "two runs at least"),
        (["compare", IDS[0], "nothing-like-it"], "'nothing-like-it' is no finished run"),
        (["compare", IDS[0], IDS[1], "--baseline", "rome_world_knowledge"], "is 2 runs"),
        (["compare", "--where", "tags.a ="], "at the end"),
        (["compare", "--where", "tags.a = 'b'"], "no finished run matches"),
    ],
)
def test_bad_input_is_one_message(store: Store, words, said) -> None:
    put(store, IDS[0])
    put(store, IDS[1], seed=1)
    database(store)
    with pytest.raises(UserError, match=said):
        cli.app(words, standalone_mode=False)


def test_of_many_runs_the_best_are_compared_and_that_is_said(store: Store, capsys) -> None:
    one = put(store, "many-20261121T000000-000000")
    made = database(store)
    for number in range(15):
        name = f"many-20261121T0001{number:02d}-abc{number:03d}"
        put(store, name, one, seed=number)
        tags = {"gapeval.outcome": name, "kind": "edit"}
        log(made, f"{number:032x}", tags=tags, metrics={"delta/gap_score": (number - 7) ** 2 / 100})
    assert (
        call("compare", "--where", "metrics.`delta/gap_score` >= 0", "--json", str(store.root / "c.json"))
        == 0
    )
    told = json.loads((store.root / "c.json").read_text())
    assert told["left_out"] == 3 and len(told["rows"]) == 12
    assert told["rows"][0]["seed"] == 7  # the smallest shift is the reference
    assert "3 more runs match" in capsys.readouterr().out
