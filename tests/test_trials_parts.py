"""What trials are made of: parts, recipes of a half, optimism, past runs as values."""

import json
import math

import pytest

from gapeval_lab.bench import chosen_items, stages_of
from gapeval_lab.benchmarks.tinyworld import TinyWorld
from gapeval_lab.errors import UserError
from gapeval_lab.gap.records import Estimate
from gapeval_lab.items import Fact, Item, Prompt
from gapeval_lab.quality import wilson
from gapeval_lab.recipe import load
from gapeval_lab.tracking_study import PastRun
from gapeval_lab.tracking_values import flatten
from gapeval_lab.trials_optimism import difference
from gapeval_lab.trials_parts import SHARD, plan
from gapeval_lab.trials_past import past_of
from gapeval_lab.trials_recipe import check_recipe, recipe_of_test, recipe_of_trial, words
from gapeval_lab.trials_run import trial_name


def test_every_shard_holds_every_category_in_its_share() -> None:
    loaded = recipe_of_trial(load("rome_world_knowledge"), {}, needs=[])
    world = TinyWorld()
    items = chosen_items(loaded.recipe, world)
    facts = stages_of(loaded.recipe, world)[0].facts
    parts = plan(facts, items)
    told, shards = [part for part in parts if part.facts], [part for part in parts if part.items]
    assert parts == [*told, *shards] and parts == plan(facts, items)
    assert [len(part.facts) for part in told] == [4, 4]
    assert [len(part.items) for part in shards] == [60] * 8 and SHARD == 64
    for shard in shards:
        counts = [sum(item.category == name for item in shard.items) for name in world.categories]
        assert counts == [15] * 4
    asked = [item.id for part in shards for item in part.items]
    assert sorted(asked) == sorted(item.id for item in items)


def test_no_fact_and_no_item_is_lost_whatever_the_numbers() -> None:
    def item(name: str, category: str = "a") -> Item:
        return Item(name, category, "s", Prompt(name), Prompt(name), ("x",))

    def fact(number: int) -> Fact:
        return Fact(f"f{number}", "s", "r", "o", "n", edit=item(f"f{number}"))

    for facts, items in ((1, 1), (3, 65), (130, 7), (5, 200)):
        written = [fact(number) for number in range(facts)]
        asked = [item(f"i{number}", "ab"[number % 3 == 0]) for number in range(items)]
        parts = plan(written, asked)
        assert [one for part in parts for one in part.facts] == written
        assert {one.id for part in parts for one in part.items} == {one.id for one in asked}
        assert all(len(part.asked) <= SHARD for part in parts)


def test_a_trials_recipe_says_what_it_leaves_out() -> None:
    base = load("lora_world_knowledge_text", ["seed=3"])
    trial = recipe_of_trial(base, {"intervention.rank": 4, "intervention.lr": 1e-05}, needs=[])
    assert trial.overrides == (
        "seed=3",
        "intervention.rank=4",
        "intervention.lr=1e-05",
        "facts.split=dev",
        "evaluation.split=dev",
        "search=null",
        "evaluation.official=false",
        "evaluation.replicates=1000",
        "controls.identity=false",
        "controls.placebo=false",
        "emergence=null",
    )
    assert load("lora_world_knowledge_text", trial.overrides).hash == trial.hash
    assert trial.recipe.intervention is not None and trial.recipe.intervention.settings["lr"] == 1e-05
    needs = ["official/after", "emergence/lag_50", "high/gap_score", "identity/delta_gap_score"]
    kept = recipe_of_trial(base, {}, needs=needs).recipe
    assert kept.evaluation == base.recipe.evaluation.model_copy(update={"split": "dev"})
    assert kept.emergence == base.recipe.emergence and kept.controls.identity and not kept.controls.placebo


THEN = {
    "facts": {"file": "facts/new_entities.jsonl", "count": 2},
    "intervention": {"use": "rome", "layer": 0},
}


@pytest.mark.parametrize("split", ["dev", "test"])
def test_all_facts_of_several_interventions_are_of_one_half(split: str) -> None:
    base = load("rome_world_knowledge", [f"then={json.dumps([THEN])}"])
    check_recipe(base, [])
    made = recipe_of_trial(base, {}, needs=[]) if split == "dev" else recipe_of_test(base, {})
    stages = stages_of(made.recipe, TinyWorld())
    assert len(stages) == 2 and {fact.split for stage in stages for fact in stage.facts} == {split}
    assert [step.intervention for step in made.recipe.then] == [s.intervention for s in base.recipe.then]


def test_sets_that_are_halves_of_one_file_cannot_be_searched() -> None:
    with pytest.raises(UserError, match=r"then\.1\.facts: a search takes the same half of every set"):
        check_recipe(load("inject_edit_inject"), [])


def test_values_survive_the_way_through_words() -> None:
    given = {"a.b": [1, 2], "c": "no", "d": None, "e": 1e-07, "f": "x: y # z", "g": True, "h": 2.0}
    text = "\n".join(f"{word.partition('=')[0]}: {word.partition('=')[2]}" for word in words(given))
    from gapeval_lab.yaml_file import parse

    assert parse(text, "words").data == given


def test_the_difference_of_two_shares_is_newcombes() -> None:
    """56 of 70 and 48 of 80: 0.2 with the interval 0.0524 to 0.3339 (Newcombe 1998, method 10, example a)."""
    found = difference(wilson(56 / 70, 70), wilson(48 / 80, 80))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_the_difference_looks_at_the_limits_that_matter() -> None:
    found = difference(Estimate(0.5, 0.2, 0.6), Estimate(0.1, 0.1, 0.5))
    assert found.low == pytest.approx(0.4 - math.hypot(0.3, 0.4))
    assert found.high == pytest.approx(0.4 + 0.1)


def test_past_runs_differ_in_nothing_else() -> None:
    recipe = recipe_of_trial(load("rome_world_knowledge"), {}, needs=[]).resolved
    params = {**flatten(recipe), "facts_hash": "f", "versions.torch": "2"}
    path = "intervention.lr"

    def past(searched: list[str] | None = None, **changes: str) -> list[object]:
        given = params | {key.replace("__", "."): value for key, value in changes.items()}
        run = PastRun("r", None, given, {"m": 1.0}, {"outcome": changes.get("outcome", "")})
        return list(past_of([run], recipe=recipe, searched=searched or [path], facts_hash="f"))

    assert past() == [({path: recipe["intervention"]["lr"]}, {"m": 1.0})]
    assert past(intervention__lr="0.5", evaluation__replicates="7", about="x", controls__placebo="true") == [
        ({path: 0.5}, {"m": 1.0})
    ]
    assert past(["intervention.site"], intervention__site="attn_out") == [
        ({"intervention.site": "attn_out"}, {"m": 1.0})
    ]
    assert past(["intervention.essence"])[0] == (  # lists come back as lists
        {"intervention.essence": recipe["intervention"]["essence"]},
        {"m": 1.0},
    )
    assert past(intervention__steps="61") == past(seed="1") == past(facts_hash="g") == []
    assert past(outcome="pruned") == []
    assert past(["intervention.rank"]) == [], "another method's"


def test_names_of_trials_are_short() -> None:
    given = {"intervention.lr": 7.4e-05, "intervention.layers": [0, 1], "intervention.use": "rome", "x.n": 8}
    assert trial_name(4, given) == "#004 lr=7.4e-05 layers=[0,1] use=rome n=8"
