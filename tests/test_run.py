"""The run itself, on scripted parts: phases, controls, reverting, resuming, refusing to go on."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from gapeval_lab.bench import Bench, Stage
from gapeval_lab.delta import fingerprint
from gapeval_lab.delta_file import Origin, read_head
from gapeval_lab.errors import SafetyError, UserError
from gapeval_lab.interfaces import Lesson, Side
from gapeval_lab.items import Direction, Fact, Item, Prompt, Response
from gapeval_lab.judges.human import Human
from gapeval_lab.outcome import Outcome
from gapeval_lab.recipe import Evaluation, FactsNode, LoadedRecipe, Node, Recipe, Step, content_hash
from gapeval_lab.run import run
from gapeval_lab.sections import Reasoning
from gapeval_lab.testing import ScriptedIntervention, ScriptedJudge, ScriptedUMM
from gapeval_lab.work_folder import archive, working_folder


class ScriptedBenchmark:
    """Eight items in two categories."""

    name, version, categories = "scripted", "1", ("a", "b")

    def items(self) -> list[Item]:
        return [
            Item(f"{c}-{i}", c, "s", Prompt(f"tell {c} {i}"), Prompt(f"draw {c} {i}"), ("new",))
            for c in self.categories
            for i in range(4)
        ]

    def training_texts(self) -> list[str]:
        return ["tell me"]

    def rehearsal(self) -> list[Lesson]:
        return []

    def illustrate(self, target: Any) -> Image.Image | None:
        return Image.new("RGB", (2, 2))

    def content_hash(self) -> str:
        return "0"


def fact(name: str = "f") -> Fact:
    def probe(role: str, accepted: str) -> Item:
        return Item(f"{name}.{role}.0", "a", "s", Prompt(f"tell {role}"), Prompt(f"draw {role}"), (accepted,))

    return Fact(
        id=name,
        subject="zor",
        relation="colour",
        target_true="old",
        target_new="new",
        edit=probe("edit", "new"),
        reworded=(probe("reworded", "new"),),
        neighbours=(probe("neighbours", "old"),),
        derived=(probe("derived", "new"),),
    )


def scripted_umm() -> ScriptedUMM:
    """Tells "new" for the edited questions once its weight is changed, draws the same for ever."""

    def tell(prompt: Prompt, seed: int) -> str:
        edited = bool(umm.weight[0, 1] > 0.5)
        return "new" if edited and prompt.text in ("tell a 0", "tell edit", "tell reworded") else "old"

    umm = ScriptedUMM(tell, lambda prompt, seed: Image.new("RGB", (2, 2), (seed % 256, 0, 0)))
    return umm


def says_right(item: Item, response: Response) -> bool:
    if response.direction is Direction.UNDERSTANDING:
        return response.text in item.accepted
    return item.id.endswith(("1", "2"))


def bench(umm: ScriptedUMM, intervention: Any = None) -> Bench:
    recipe = Recipe(
        name="scripted",
        about="",
        seed=0,
        model=Node(use="m"),
        benchmark=Node(use="b"),
        judge=Node(use="j"),
        evaluation=Evaluation(batch=3, replicates=200, official=False),
    )
    resolved = recipe.model_dump(mode="json")
    loaded = LoadedRecipe(recipe, "name: scripted\n", resolved, content_hash(resolved), "scripted.yaml")
    world = ScriptedBenchmark()
    return Bench(
        loaded,
        umm,
        ScriptedJudge(says_right),
        world,
        world.items(),
        [Stage((fact(),), intervention or ScriptedIntervention())],
        fingerprint(umm.root),
    )


def go(tmp_path: Path, parts: Bench, *, stages: list[str] | None = None) -> Outcome:
    seen = [] if stages is None else stages
    with working_folder(tmp_path, parts.key) as work:
        return run(parts, home=tmp_path, work=work, on_stage=seen.append, on_progress=lambda *_: None)


def test_all_phases_run_and_the_outcome_tells_what_shifted(tmp_path: Path) -> None:
    stages: list[str] = []
    umm = scripted_umm()
    outcome = go(tmp_path, bench(umm), stages=stages)
    assert stages == ["before", "fit", "after", "identity", "placebo", "report"]
    assert outcome.reverted and outcome.weights_fingerprint_reverted == outcome.weights_fingerprint
    assert torch.equal(umm.weight, torch.eye(4))
    assert outcome.shift is not None
    assert outcome.shift.categories["a"].understanding.gained == 1
    assert outcome.shift.categories["b"].understanding.gained == 0
    assert outcome.target_categories == ["a"]
    assert outcome.delta_norms == {"0.weight": 1.0}
    assert outcome.delta_spectrum == {"0.weight": [1.0]}
    quality = outcome.quality
    assert quality is not None
    assert quality.reliability["text"].before.value == 0 and quality.reliability["text"].after.value == 1
    assert quality.reliability["image"].after.value == quality.reliability["image"].before.value
    assert quality.locality["text"].after.value == 1
    assert quality.portability["text"].after.value == 0


def test_the_identity_control_is_exactly_zero(tmp_path: Path) -> None:
    shift = go(tmp_path, bench(scripted_umm())).identity_shift
    assert shift is not None
    assert (shift.gap.value, shift.gap.low, shift.gap.high) == (0, 0, 0)
    assert shift.changed_items == 0
    for category in shift.categories.values():
        assert category.understanding.shift.value == category.generation.shift.value == 0


def test_the_identity_control_can_fail(tmp_path: Path) -> None:
    """A model whose answers drift while nothing is done to it is caught."""
    umm = scripted_umm()
    asked = {"n": 0}

    def drifts(prompt: Prompt, seed: int) -> str:
        asked["n"] += 1
        return "new" if asked["n"] > 24 else "old"

    umm._tell = drifts
    shift = go(tmp_path, bench(umm)).identity_shift
    assert shift is not None and shift.understanding.value > 0


def test_the_outcome_on_disk_is_the_outcome(tmp_path: Path) -> None:
    parts = bench(scripted_umm())
    outcome = go(tmp_path, parts)
    work = tmp_path / "work" / parts.key
    assert Outcome.load(work) == outcome
    head = read_head(work / "delta.safetensors")
    assert (head.address, head.origin) == (outcome.delta_address, Origin(parts.weights, "text"))
    for row in outcome.before.rows:
        assert row.picture and (work / row.picture).exists()


def test_the_same_run_twice_gives_the_same_numbers(tmp_path: Path) -> None:
    def numbers(outcome: Outcome) -> Outcome:
        return outcome.model_copy(
            update={"seconds": {}, "started": "", "run_id": "", "peak_memory_gib": 0.0, "curves": {}}
        )

    one = go(tmp_path / "one", bench(scripted_umm()))
    two = go(tmp_path / "two", bench(scripted_umm()))
    assert numbers(one) == numbers(two)


def test_a_finished_run_is_not_repeated_until_it_is_archived(tmp_path: Path) -> None:
    parts = bench(scripted_umm())
    first = go(tmp_path, parts)
    umm = scripted_umm()
    assert go(tmp_path, bench(umm)) == first
    assert sum(umm.calls.values()) == 0
    place = archive(tmp_path / "work" / parts.key, tmp_path / "outcomes" / first.run_id)
    assert Outcome.load(place) == first
    go(tmp_path, bench(umm))
    assert umm.calls[Direction.UNDERSTANDING] > 0


@pytest.mark.parametrize("dies_at", [1, 5, 12, 13, 20, 24, 30, 36])
def test_a_killed_run_continues_and_ends_with_the_same_numbers(tmp_path: Path, dies_at: int) -> None:
    whole = go(tmp_path / "whole", bench(scripted_umm()))
    umm = scripted_umm()
    script, asked = umm._tell, {"n": 0}

    def dies(prompt: Prompt, seed: int) -> str:
        asked["n"] += 1
        if asked["n"] == dies_at:
            raise KeyboardInterrupt
        return script(prompt, seed)

    umm._tell = dies
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", bench(umm))
    assert torch.equal(umm.weight, torch.eye(4)), "an interrupted run leaves the model as it was"
    fresh = scripted_umm()
    resumed = go(tmp_path / "cut", bench(fresh))
    assert resumed.after == whole.after and resumed.shift == whole.shift and resumed.quality == whole.quality
    # Of what was finished nothing was asked again: at most the chunk that was cut is repeated.
    assert fresh.calls[Direction.UNDERSTANDING] <= 40 - (dies_at - 1) + 3


class Spoils(ScriptedIntervention):
    """Breaks the promise: leaves the weights changed."""

    def fit(self, umm: Any, facts: Sequence[Fact], **rest: Any) -> Any:
        delta = super().fit(umm, facts, **rest)
        with torch.no_grad():
            umm.weight[2, 2] = 7
        return delta


def test_an_intervention_that_spoils_the_weights_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(SafetyError, match="changed by fitting"):
        go(tmp_path, bench(scripted_umm(), Spoils()))
    assert not list(tmp_path.glob("work/*/outcome.json"))


def test_a_model_without_an_intervention_is_measured_once(tmp_path: Path) -> None:
    parts = replace(bench(scripted_umm()), stages=[])
    outcome = go(tmp_path, parts)
    assert outcome.kind == "baseline"
    assert outcome.after is None and outcome.shift is None and outcome.quality is None


def test_an_outcome_of_older_days_is_read(tmp_path: Path) -> None:
    """From before it held an address and a spectrum."""
    outcome = go(tmp_path, bench(scripted_umm()))
    file = go_folder(tmp_path)
    record = json.loads(file.read_text())
    del record["delta_address"], record["delta_spectrum"]
    file.write_text(json.dumps(record))
    older = Outcome.load(file)
    assert (older.delta_address, older.delta_spectrum, older.stable_ranks()) == (None, {}, {})
    assert older.delta_norm() == outcome.delta_norm() == 1.0


def test_the_baseline_is_asked_once_for_many_recipes(tmp_path: Path) -> None:
    go(tmp_path, bench(scripted_umm()))
    umm = scripted_umm()
    go(tmp_path, bench(umm, ScriptedIntervention(size=2.0)))
    again = scripted_umm()
    changed = bench(again, ScriptedIntervention(size=2.0))
    changed.loaded = replace(changed.loaded, hash="another recipe")
    go(tmp_path, changed)
    # after, identity and placebo: 9 + 3 probes in the first, 8 in each control; before comes from disk
    assert again.calls[Direction.UNDERSTANDING] == 12 + 8 + 8


def test_one_run_at_a_time_per_recipe(tmp_path: Path) -> None:
    with (
        working_folder(tmp_path, "k"),
        pytest.raises(UserError, match="running already"),
        working_folder(tmp_path, "k"),
    ):
        pass
    with working_folder(tmp_path, "k") as free:
        assert free.is_dir()


def test_an_unwritable_home_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="GAPEVAL_LAB_HOME"), working_folder(tmp_path / "file", "k"):
        pass


class Second(ScriptedIntervention):
    """Undoes the first one's change, through pictures."""

    @property
    def direction(self) -> Side:
        return "image"

    @property
    def kind(self) -> Literal["edit", "inject"]:
        return "inject"


def two_stages(umm: ScriptedUMM) -> Bench:
    parts = bench(umm)
    node = Node.model_validate({"use": "first"})
    later = Step(facts=FactsNode(file="f"), intervention=Node.model_validate({"use": "second"}))
    recipe = parts.loaded.recipe.model_copy(update={"intervention": node, "then": (later,)})
    other = fact("g")
    return replace(
        parts,
        loaded=replace(parts.loaded, recipe=recipe),
        stages=[parts.stages[0], Stage((other,), Second(size=-1.0))],
    )


def test_several_interventions_are_measured_one_by_one(tmp_path: Path) -> None:
    stages: list[str] = []
    umm = scripted_umm()
    outcome = go(tmp_path, two_stages(umm), stages=stages)
    assert stages == ["before", "fit 1", "after 1", "fit 2", "after 2", "identity", "placebo", "report"]
    assert torch.equal(umm.weight, torch.eye(4))
    assert [stage.method for stage in outcome.stages] == ["first", "second"]
    assert [stage.direction for stage in outcome.stages] == ["text", "image"]
    assert (outcome.direction, outcome.kind) == ("both", "edit")
    states = (outcome.kept_before, *(stage.kept for stage in outcome.stages))
    told = [[kept["text"] for kept in state] for state in states]
    assert told == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]  # written, then undone
    assert outcome.stages[0].shift.categories["a"].understanding.gained == 1
    assert outcome.stages[1].quality.reliability["text"].before.value == 1.0
    assert outcome.shift is not None and outcome.shift.changed_items == 0
    assert outcome.delta_norms == {"0.weight": pytest.approx(0.0, abs=1e-6)}
    folder = go_folder(tmp_path).parent
    assert Outcome.load(folder).stages == outcome.stages
    head = read_head(folder / "delta.safetensors")
    assert head.address == outcome.delta_address
    made_of = [part.address for part in head.origin.parts]
    assert made_of == [read_head(folder / f"stages/{n}/delta.safetensors").address for n in (1, 2)]


def go_folder(home: Path) -> Path:
    (file,) = (home / "work").glob("*/outcome.json")
    return file


def test_a_kill_between_two_interventions_keeps_the_first(tmp_path: Path) -> None:
    umm = scripted_umm()
    parts = two_stages(umm)

    def die(stage: str) -> None:
        if stage == "fit 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), working_folder(tmp_path, parts.key) as work:
        run(parts, home=tmp_path, work=work, on_stage=die, on_progress=lambda *_: None)
    assert torch.equal(umm.weight, torch.eye(4))
    asked = sum(umm.calls.values())
    assert asked == 2 * 2 * (8 + 2 * 4)  # before and after 1, two directions, items and probes
    outcome = go(tmp_path, two_stages(umm))
    assert outcome.stages[1].quality.reliability["text"].after.value == 0.0
    assert sum(umm.calls.values()) == asked + 2 * (8 + 2 * 4) + 2 * 2 * 8  # after 2 and the controls


def reasoned(parts: Bench) -> Bench:
    """The same, whose facts are drawn from what the model says of their subjects too."""
    protocol = parts.loaded.recipe.evaluation.model_copy(
        update={"reasoning": Reasoning(questions=("tell edit",), draw={"whole": "paint {text}"})}
    )
    recipe = parts.loaded.recipe.model_copy(update={"evaluation": protocol})
    return replace(parts, loaded=replace(parts.loaded, recipe=recipe))


def paints_what_it_is_told(prompt: Prompt, seed: int) -> Image.Image:
    return Image.new("RGB", (2, 2), (0, 0, 255 if prompt.text == "paint new" else 0))


def is_blue(item: Item, response: Response) -> bool:
    if response.image is None:
        return response.text in item.accepted
    return bool(response.image.getpixel((0, 0)) == (0, 0, 255))


def test_facts_are_drawn_from_what_the_edited_model_writes(tmp_path: Path) -> None:
    umm = scripted_umm()
    umm._draw = paints_what_it_is_told
    parts = replace(reasoned(bench(umm)), judge=ScriptedJudge(is_blue))
    outcome = go(tmp_path, parts)
    # Before and after: one text for all four wordings, and a picture for each; no control asks.
    assert umm.calls[Direction.UNDERSTANDING] == 4 * 8 + 2 * (4 + 1)
    assert umm.calls[Direction.GENERATION] == 4 * 8 + 2 * (4 + 4)
    assert outcome.quality is not None
    direct, whole = outcome.quality.protocols
    assert direct.cells["reliability"] == outcome.quality.reliability["image"]
    assert direct.cells["reliability"].after.value == 0 and whole.cells["reliability"].after.value == 1
    assert whole.cells["locality"].after.value == 0, "a neighbour drawn in the fact's words has changed"
    rows = {(row.probe, row.phase): row for row in outcome.reasoned}
    assert len(rows) == 8
    before, after = rows["f.edit.0", "before"], rows["f.edit.0", "after"]
    assert (before.written, after.written) == ("old", "new")
    drawn = after.drawn["whole"]
    assert (drawn.prompt, drawn.correct, after.drawn["direct"].prompt) == ("paint new", True, "draw edit")
    folder = go_folder(tmp_path).parent
    assert Image.open(folder / drawn.picture).getpixel((0, 0)) == (0, 0, 255)
    assert Outcome.load(folder) == outcome


def test_drawing_from_what_was_written_after_every_intervention(tmp_path: Path) -> None:
    umm = scripted_umm()
    umm._draw = paints_what_it_is_told
    parts = replace(reasoned(two_stages(umm)), judge=ScriptedJudge(is_blue))
    outcome = go(tmp_path, parts)
    shares = [stage.quality.protocols[1].cells["reliability"] for stage in outcome.stages]
    assert [(share.before.value, share.after.value) for share in shares] == [(0, 1), (1, 0)]
    assert {row.fact for row in outcome.reasoned} == {"f", "g"}


def test_a_recipe_that_does_not_ask_for_it_has_no_protocols(tmp_path: Path) -> None:
    outcome = go(tmp_path, bench(scripted_umm()))
    assert outcome.reasoned == [] and outcome.quality is not None and outcome.quality.protocols == []


def test_a_judge_that_reads_other_labels_makes_another_run(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    row = "item,direction,answer,correct,who,when\na-0,understanding,0,{},ada,2026-01-31\n"
    file.write_text(row.format("yes"))
    parts = bench(scripted_umm())
    first = replace(parts, judge=Human(file=str(file))).key
    assert first == replace(parts, judge=Human(file=str(file))).key
    file.write_text(row.format("no"))
    assert replace(parts, judge=Human(file=str(file))).key != first
