"""Answers on disk: replayed as a model, exported from a run, and there and back again."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gapeval_data as data
import pytest
from contract_umm import UMMContract
from PIL import Image

from gapeval_lab import cli
from gapeval_lab.bench import Bench, chosen_items, load_bench, weights_of
from gapeval_lab.benchmarks.gapeval import GapEval
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import Evaluation, ResponseStore, evaluate
from gapeval_lab.export_gapeval import export_run
from gapeval_lab.gapeval_layout import INDEX
from gapeval_lab.interfaces import UMM, Weightless
from gapeval_lab.items import Direction, Item, Prompt, Response, image_digest
from gapeval_lab.models.replay import NoAnswer, Replay
from gapeval_lab.outcome import Outcome
from gapeval_lab.recipe import resolve
from gapeval_lab.run import run
from gapeval_lab.testing import ScriptedJudge, ScriptedUMM

TEXT, IMAGE = Direction.UNDERSTANDING, Direction.GENERATION


def judge_by_content(item: Item, response: Response) -> bool | None:
    """Some right, some wrong, none at random."""
    if response.error is not None:
        return None
    if response.direction is TEXT:
        return sum(map(ord, response.text or "")) % 2 == 0
    assert response.image is not None
    return int(image_digest(response.image)[:2], 16) % 2 == 0


JUDGE = ScriptedJudge(judge_by_content)


@pytest.fixture
def many_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a set this small, a few missing answers are many."""
    monkeypatch.setattr("gapeval_lab.evaluate.MAX_ERRORS", 1.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = data.build(tmp_path / "set")
    data.answer_all(place, "bagel")
    return place


def replayed(root: Path, **more: Any) -> Any:
    return Replay(root=str(root), model="bagel", **more).load()


def asked(umm: UMM, items: Sequence[Item], **more: Any) -> Evaluation:
    return evaluate(umm, items, judge=JUDGE, seed=0, **more)


class TestContract(UMMContract):
    """What every adapter promises."""

    @pytest.fixture
    def umm(self, tmp_path: Path) -> UMM:
        for number, prompt in enumerate(self.prompts(), start=1):
            keys = data.keys("anything", number=number, und_prompt=prompt.text, gen_prompt=prompt.text)
            folder = data.item(tmp_path, number, keys)
            for image in prompt.images:
                (folder / "image").mkdir()
                image.save(folder / "image" / "1.png")
            data.answer(tmp_path, number, "bagel", text=f"told {number}", colour=(number, 0, 0))
        umm: UMM = replayed(tmp_path)
        return umm


def test_every_item_gets_its_own_answer(root: Path, tmp_path: Path) -> None:
    umm = replayed(root)
    assert isinstance(umm, UMM) and isinstance(umm, Weightless)
    assert umm.name == "bagel" and umm.directions == frozenset(Direction)
    items = GapEval(root=str(root)).items()
    result = asked(umm, items, chunk=4, store=ResponseStore(tmp_path / "store"))
    for number, item in enumerate(items, start=1):
        assert result.responses[item.id, TEXT].text == f"told {number}"
        image = result.responses[item.id, IMAGE].image
        assert image is not None and image.mode == "RGB" and image.getpixel((0, 0)) == (number, 100, 0)


def test_the_first_picture_by_name_counts(root: Path) -> None:
    data.answer(root, 1, "bagel", more={"a.jpg": (200, 0, 0), "c.png": (0, 200, 0)})
    items = GapEval(root=str(root)).items()
    red, green, _ = replayed(root).draw([items[0].generate], seeds=[0])[0].getpixel((0, 0))
    assert red > 190 and green < 10


def test_the_same_pictures_in_memory_and_in_another_format_are_found(root: Path) -> None:
    items = GapEval(root=str(root)).items()
    umm = replayed(root)
    for number in (5, 13, 14):  # two of them with one text
        prompt = items[number - 1].generate
        held = Prompt(prompt.text, prompt.images)
        assert held.digest != prompt.digest
        assert umm.draw([held], seeds=[0])[0].getpixel((0, 0)) == (number, 100, 0)
    other = Prompt(items[4].generate.text, (Image.new("RGB", (8, 8)),))
    for prompt in (other, Prompt(items[4].generate.text), Prompt("never asked")):
        with pytest.raises(NoAnswer, match="no item of"):
            umm.draw([prompt], seeds=[0])


@pytest.mark.usefixtures("many_gaps")
def test_missing_answers_are_not_scored_and_cost_no_second_reading(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "data_2" / "bagel" / "text.json").unlink()
    shutil.rmtree(root / "data_9" / "bagel")
    items = GapEval(root=str(root)).items()
    umm = replayed(root)
    opened: list[str] = []
    picture = umm._picture
    monkeypatch.setattr(umm, "_picture", lambda found: opened.append(found.folder) or picture(found))
    result = asked(umm, items, chunk=100)
    assert sorted(opened) == sorted(item.id for item in items if item.id != "data_9")
    missing = {key for key, response in result.responses.items() if response.error}
    assert missing == {("data_2", TEXT), ("data_9", TEXT), ("data_9", IMAGE)}
    assert "data_2 holds no text.json of bagel" in str(result.responses["data_2", TEXT].error)
    assert result.correct(items[1], TEXT) is None and result.correct(items[0], TEXT) is not None


def test_a_few_gaps_among_many_items_cost_one_look_up_more_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 400
    for n in range(1, number + 1):
        data.item(tmp_path, n, data.keys("celebrity", number=n))
        if n % 20:
            data.answer(tmp_path, n, "bagel", text=f"told {n}")
    items, umm = GapEval(root=str(tmp_path)).items(), replayed(tmp_path)
    looked: list[Prompt] = []
    find = umm._find
    monkeypatch.setattr(
        umm, "_find", lambda prompt, direction: looked.append(prompt) or find(prompt, direction)
    )
    result = asked(umm, items, chunk=50)
    assert sum(one.error is not None for one in result.responses.values()) == number // 20
    assert len(looked) <= 2 * number


def test_a_model_that_only_tells_has_one_direction(root: Path) -> None:
    data.answer(root, 1, "vlm", text="x")
    umm = Replay(root=str(root), model="vlm").load()
    assert umm.directions == {TEXT}


def test_identity_is_of_contents(root: Path, tmp_path: Path) -> None:
    first = replayed(root)
    assert weights_of(first) == replayed(root).identity()
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    assert replayed(copy).identity() == first.identity()
    assert replayed(copy).settings() == first.settings()
    file = root / "data_3" / "bagel" / "text.json"
    stamp = file.stat()
    file.write_text(file.read_text().replace("told 3", "told 4"))  # the same size, and the same time
    __import__("os").utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = replayed(root)
    assert second.identity() != first.identity()
    data.picture(root / "data_3" / "bagel" / "b.png", (9, 9, 9))
    assert replayed(root).identity() != second.identity()
    items = GapEval(root=str(root)).items()
    with pytest.raises(NoAnswer, match="changed while"):
        second.draw([items[2].generate], seeds=[0])


@pytest.mark.usefixtures("many_gaps")
def test_equal_prompts_with_different_answers_are_refused_by_name(root: Path) -> None:
    shutil.copy(root / "data_13" / "image" / "1.png", root / "data_14" / "image" / "1.png")
    with pytest.raises(UserError, match="data_13 and data_14 have the same understanding prompt") as caught:
        replayed(root)
    assert "same generation prompt" in str(caught.value)
    items = GapEval(root=str(root)).items()
    result = asked(replayed(root, flawed="skip"), items[:13])
    assert "data_13 and data_14" in str(result.responses["data_13", IMAGE].error)
    data.answer(root, 14, "bagel", text="told 13", colour=(13, 100, 0))
    umm = replayed(root)  # the same answers: nothing to tell apart
    assert umm.answer([items[12].understand], seeds=[0]) == ["told 13"]


@pytest.mark.usefixtures("many_gaps")
def test_broken_answers_are_all_named(root: Path) -> None:
    (root / "data_1" / "bagel" / "text.json").write_text("{")
    (root / "data_2" / "bagel" / "text.json").write_text('{"output": "x"}')
    (root / "data_3" / "bagel" / "b.png").write_bytes(b"no picture")
    (root / "data_4" / "prompt.json").write_text("{")
    with pytest.raises(UserError) as caught:
        replayed(root)
    for number in (1, 2, 3, 4):
        assert f"  data_{number}: " in str(caught.value)
    umm = replayed(root, flawed="skip")
    items = GapEval(root=str(root), flawed="skip").items()
    errors = {key for key, one in asked(umm, items).responses.items() if one.error}
    assert errors == {("data_1", TEXT), ("data_2", TEXT), ("data_3", IMAGE)}


@pytest.mark.parametrize("name", ["bagle", "ref", "lumoo", "output_2"])
def test_models_that_are_none(root: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"there are: bagel") as caught:
        Replay(root=str(root), model=name).load()
    assert ("did you mean 'bagel'" in str(caught.value)) == (name == "bagle")


def test_it_is_measured_and_nothing_else(root: Path) -> None:
    umm = replayed(root)
    for call in (umm.backbone, lambda: umm.loss([], TEXT)):
        with pytest.raises(UserError, match="replayed from stored answers"):
            call()


def recipe(root: Path, **fields: str) -> str:
    nodes = {
        "model": f"{{use: replay, root: {root}, model: bagel}}",
        "benchmark": f"{{use: gapeval, root: {root}}}",
        "judge": "{use: option_letter}",
        "evaluation": "{replicates: 50, official: false, batch: 4}",
        **fields,
    }
    return "name: there\nabout: and back\nseed: 1\n" + "".join(f"{k}: {v}\n" for k, v in nodes.items())


def tell(prompt: Prompt, seed: int) -> str:
    return f"I say «{prompt.text}» {len(prompt.pictures)}"


def paint(prompt: Prompt, seed: int) -> Image.Image:
    return Image.new("RGB", (4, 4), tuple(prompt.digest.encode()[:3]))


def measured(text: str, umm: UMM | None, home: Path) -> tuple[Bench, Outcome, Path]:
    """A run of the recipe, on a model that is given or on the recipe's own."""
    loaded = resolve(text, source="r.yaml")
    if umm is None:
        bench = load_bench(loaded)
        bench.judge = JUDGE
    else:
        world = loaded.recipe.build("benchmark")
        items = chosen_items(loaded.recipe, world)
        bench = Bench(loaded, umm, JUDGE, world, items, [], weights_of(umm))
    work = home / "work"
    work.mkdir(parents=True)
    outcome = run(bench, home=home, work=work, on_stage=lambda _: None, on_progress=lambda *_: None)
    return bench, outcome, work


def said(outcome: Outcome, work: Path) -> list[tuple[Any, ...]]:
    rows = []
    for row in outcome.before.rows:
        picture = None
        if row.picture:
            with Image.open(work / row.picture) as image:
                picture = image_digest(image.convert("RGB"))
        rows.append((row.id, row.answer, picture, row.understanding, row.generation))
    return rows


TINY = "{replicates: 50, official: false, items: 24}"


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("world", ["gapeval", "tinyworld"])
def test_there_and_back(root: Path, tmp_path: Path, world: str, fresh: bool) -> None:
    fields = {} if world == "gapeval" else {"benchmark": "{use: tinyworld}", "evaluation": TINY}
    _, first, work = measured(recipe(root, **fields), ScriptedUMM(tell, paint), tmp_path / "a")
    out = tmp_path / "out" if fresh or world == "tinyworld" else root
    done = export_run(work, out)
    assert done.model == "scripted-before" and done.texts == done.pictures == done.items == len(
        first.before.rows
    )
    assert (out / INDEX).exists() == (world == "tinyworld")
    back = {**fields, "model": f"{{use: replay, root: {out}, model: {done.model}}}"}
    bench, second, again = measured(recipe(root, **back), None, tmp_path / "b")
    assert said(second, again) == said(first, work)
    assert first.before.gap == second.before.gap
    assert bench.weights == second.weights_fingerprint != first.weights_fingerprint


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_exported_set_is_read_as_the_published_one_is(root: Path, tmp_path: Path) -> None:
    _, _, work = measured(recipe(root), ScriptedUMM(tell, paint), tmp_path / "a")
    export_run(work, tmp_path / "out", model="mine")
    here, there = GapEval(root=str(tmp_path / "out")), GapEval(root=str(root))
    assert [item.id for item in here.items()] == [item.id for item in there.items()]
    for one, other in zip(here.items(), there.items(), strict=True):
        assert (
            one.understand.digest == other.understand.digest and one.generate.digest == other.generate.digest
        )
        assert one.target == other.target and one.accepted == other.accepted
        assert [p.digest for p in one.references] == [p.digest for p in other.references]  # type: ignore[union-attr]
    keys = json.loads((tmp_path / "out" / "data_2" / "mine" / "text.json").read_text())
    assert keys == {"output_text": "I say «tell 2» 0"}


def test_nothing_is_overwritten(root: Path, tmp_path: Path) -> None:
    _, _, work = measured(recipe(root), ScriptedUMM(tell, paint), tmp_path / "a")
    mine = {name: value for name, value in snapshot(root).items()}
    export_run(work, root)
    export_run(work, root)  # the same again: nothing to do
    after = snapshot(root)
    assert {name: after[name] for name in mine} == mine
    assert {Path(name).parts[1] for name in after.keys() - mine.keys()} == {"scripted-before"}
    (root / "data_4" / "scripted-before" / "new_res.json").write_text("verdicts of the authors' scripts")
    export_run(work, root)
    (root / "data_4" / "scripted-before" / "new_res.json").unlink()
    (root / "data_5" / "scripted-before" / "output.png").unlink()  # as after a kill
    export_run(work, root)
    assert snapshot(root).keys() == after.keys()
    (root / "data_5" / "scripted-before" / "a.png").write_bytes(b"theirs")
    (root / "data_8" / "scripted-before" / "text.json").unlink()
    (root / "data_8" / "scripted-before" / "new_res.json").write_text("verdicts on another answer")
    (root / "data_6" / "scripted-before" / "text.json").write_text("theirs")
    out = tmp_path / "copy"
    shutil.copytree(root, out)
    (out / "data_7" / "prompt.json").write_text(json.dumps(data.keys("counting", number=70)))
    before = snapshot(out)
    with pytest.raises(UserError) as caught:
        export_run(work, out)
    for name in (
        "data_5/scripted-before/a.png",
        "data_6/scripted-before/text.json",
        "data_7 is another item",
        "data_8/scripted-before/new_res.json",
    ):
        assert name in str(caught.value)
    assert snapshot(out) == before
    with pytest.raises(UserError, match="is a file"):
        export_run(work, root / "data_7" / "prompt.json")


def test_runs_that_cannot_be_exported(root: Path, tmp_path: Path) -> None:
    _, outcome, work = measured(recipe(root), ScriptedUMM(tell, paint), tmp_path / "a")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--phase"):
        export_run(work, out, phase="after")
    for name in ("ref", "a/b", "output_x", "", "."):
        with pytest.raises(UserError, match="--model"):
            export_run(work, out, model=name)
    picture = work / str(outcome.before.rows[0].picture)
    held = picture.read_bytes()
    picture.unlink()
    with pytest.raises(UserError, match="1 of its pictures are gone"):
        export_run(work, out)
    picture.write_bytes(held)
    data.picture(root / "data_7" / "ref" / "1.png", (77, 0, 0))  # another data set than that of the run
    with pytest.raises(UserError, match="not those that the run asked"):
        export_run(work, out)
    (work / "outcome.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        export_run(work, out)
    assert not out.exists()


def test_the_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GAPEVAL_LAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _, _, work = measured(recipe(root), ScriptedUMM(tell, paint), tmp_path / "a")
    place = tmp_path / "home" / "mlruns" / "outcomes" / "there-1"
    place.parent.mkdir(parents=True)
    shutil.move(work, place)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gapeval-lab", "export", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    assert call("there-1", "--layout", "gapeval", "--out", str(tmp_path / "out"), "--phase", "before") == 0
    assert "14 items, answered before: 14 texts and 14 pictures" in capsys.readouterr().out
    assert (tmp_path / "out" / "data_14" / "scripted-before" / "output.png").is_file()
    for name in ("last", "there"):  # as other commands call a run
        assert call(name, "--out", str(tmp_path / name), "--phase", "before") == 0
        assert "14 items, answered before" in capsys.readouterr().out
    assert call("there-2", "--out", str(tmp_path / "out")) == 2
    assert "did you mean 'there-1'" in capsys.readouterr().err
