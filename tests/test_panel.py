"""Panels of judges: how nested nodes are checked, the rules, and how agreement is measured."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from gapeval_lab.agreement import agreement, agreement_table
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import Judge, Voting
from gapeval_lab.items import Direction, Item, Prompt, Response, Verdict
from gapeval_lab.judges.panel import Panel, combined
from gapeval_lab.nested import load_judge
from gapeval_lab.recipe import resolve
from gapeval_lab.yaml_file import parse

RECIPE = """name: x
about: y
seed: 0
model: {config: embedded}
benchmark: {use: tinyworld}
judge:
"""
TWO = "{use: panel, judges: [{use: exact}, {use: panel, rule: first, judges: [{use: exact}, {use: exact}]}]}"


def pairs(texts: Sequence[str]) -> list[tuple[Item, Response]]:
    return [
        (
            Item(f"i{n}", f"c{n % 2}", "s", Prompt("?"), Prompt("!"), ("red",)),
            Response(f"i{n}", Direction.UNDERSTANDING, text=text),
        )
        for n, text in enumerate(texts)
    ]


def test_a_panel_in_a_recipe_is_resolved_and_built_with_all_its_defaults() -> None:
    loaded = resolve(RECIPE[:-1] + f" {TWO}\n", source="r.yaml")
    node = loaded.resolved["judge"]
    assert node["rule"] == "majority" and node["judges"][1]["rule"] == "first"
    panel = loaded.recipe.build("judge")
    assert isinstance(panel, Judge) and isinstance(panel, Voting)
    assert list(panel.members) == ["exact", "panel"]
    assert list(panel.members["panel"].members) == ["exact", "exact#2"]
    assert [one.correct for one in panel(pairs(["red", "blue"]))] == [True, False]
    again = resolve(RECIPE[:-1] + f" {TWO}\n", source="r.yaml", overrides=["judge.rule=first"])
    assert again.hash != loaded.hash
    assert again.recipe.build("judge").settings() != panel.settings()


def test_every_mistake_in_nested_nodes_is_told_with_its_path_and_line() -> None:
    text = """  use: panel
  rule: most
  judges:
    - {use: exakt}
    - use: exact
      tolerance: 3
    - {use: panel, judges: [{use: exact}]}
    - {use: panel, juges: [{use: exact}]}
    - {config: nothere}
    - 3
    - {}
"""
    with pytest.raises(UserError) as caught:
        resolve(RECIPE + text, source="r.yaml")
    said = str(caught.value).splitlines()
    assert said[0] == "r.yaml: 9 to mend"
    for words in (
        "judge.rule: should be 'majority', 'unanimous' or 'first'; got 'most' (line 8)",
        "judge.judges.0.use: judges: 'exakt' is unknown; did you mean 'exact'?",
        "judge.judges.1.tolerance: unknown key (line 12)",
        "judge.judges.2.judges: a panel has two judges or more, got 1; add one (line 13)",
        "judge.judges.3: judges: missing; this key must be given (line 14)",
        "judge.judges.3.juges: unknown key; did you mean 'judges'? (line 14)",
        "judge.judges.4.config: file: 'nothere' was found neither",
        "judge.judges.5: should be a mapping such as {use: name}; got 3 (line 16)",
        "judge.judges.6: use: should name one of: ",
    ):
        assert any(line.strip().startswith(words) for line in said), (words, said)


@pytest.mark.parametrize(
    ("said", "majority", "unanimous", "first"),
    [
        ((True, True, False), True, None, True),
        ((False, True, False), False, None, False),
        ((True, False), None, None, True),
        ((None, False), False, None, False),
        ((None, True, False), None, None, True),
        ((True, True), True, True, True),
        ((None, None), None, None, None),
    ],
)
def test_rules(
    said: tuple[bool | None, ...], majority: bool | None, unanimous: bool | None, first: bool | None
) -> None:
    assert (combined(said, "majority"), combined(said, "unanimous"), combined(said, "first")) == (
        majority,
        unanimous,
        first,
    )


def test_a_field_of_one_judge_in_the_list_can_be_set_on_the_command_line() -> None:
    loaded = resolve(RECIPE[:-1] + f" {TWO}\n", source="r.yaml", overrides=["judge.judges.1.rule=unanimous"])
    assert loaded.resolved["judge"]["judges"][1]["rule"] == "unanimous"
    with pytest.raises(UserError, match=r"judge.judges.2.rule: there is no '2' in this list of 2"):
        resolve(RECIPE[:-1] + f" {TWO}\n", source="r.yaml", overrides=["judge.judges.2.rule=first"])


def test_verdicts_of_all_members_stand_in_the_reason() -> None:
    panel = Panel.model_validate({"judges": [{"use": "exact"}, {"use": "exact"}]})
    (one,) = panel(pairs(["blue"]))
    assert one.correct is False
    assert one.reason == "exact wrong (read as: blue); exact#2 wrong (read as: blue)"
    assert panel.decide(panel.votes([])) == [] == panel([])


def test_a_judge_on_the_command_line() -> None:
    assert load_judge("exact")[0] == "exact"
    name, node = load_judge(TWO, ["rule=unanimous", "judges.1.rule=majority"])
    assert (name, node.settings["rule"], node.settings["judges"][1]["rule"]) == (
        "panel",
        "unanimous",
        "majority",
    )
    for given, overrides, words in (
        ("exakt", [], "panel); did you mean 'exact'?"),
        ("endpont", [], "'endpont' is neither a config (endpoint, local_qwen, openai, panel_example) nor a"),
        ("endpont", [], "did you mean 'endpoint'?"),
        ("exact", ["tolerance=1"], "judge.tolerance: unknown key"),
        ("exact", ["tolerance"], "not of the form path=value"),
        (TWO, ["judges.7.rule=first"], "there is no '7'"),
        ("{use: panel", [], "not valid YAML"),
        ("{use: panel, use: panel}", [], "stands twice"),
    ):
        with pytest.raises(UserError, match="--judge|--set") as caught:
            load_judge(given, overrides)
        assert words in str(caught.value)


def test_no_message_repeats_what_may_be_a_secret() -> None:
    llm = "{use: llm, model: m, base_url: 'http://me:hush@h/v1', key_env: sk-hush, api_key: hush}"
    for given in (llm, f"{{use: panel, judges: [{llm}, {{use: exact}}]}}"):
        with pytest.raises(UserError, match="base_url: should hold no user") as caught:
            load_judge(given)
        assert "hush" not in str(caught.value)
    with pytest.raises(ValidationError) as raw:
        Panel.model_validate({"judges": [parse(llm, "").data, {"use": "exact"}]})
    assert "hush" not in str(raw.value)


def test_a_config_of_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "judges"
    folder.mkdir(parents=True)
    (folder / "two.yaml").write_text("use: panel\nrule: first\njudges: [{use: exact}, {use: exact}]\n")
    monkeypatch.chdir(tmp_path)
    name, node = load_judge("two", ["rule=majority"])
    assert (name, node.use, node.settings["rule"]) == ("two", "panel", "majority")
    nested = load_judge("{use: panel, judges: [{config: two, rule: unanimous}, {use: exact}]}")[1]
    assert nested.settings["judges"][0]["rule"] == "unanimous"
    assert "config" not in nested.settings["judges"][0]
    (folder / "two.yaml").write_text("use: panel\nrule: worst\njudges: [{use: exact}, {use: exact}]\n")
    with pytest.raises(UserError, match=r"rule: should be .*; got 'worst' \(.*two.yaml line 2\)"):
        load_judge("{use: panel, judges: [{config: two}, {use: exact}]}")


def test_cohens_kappa_of_a_table_with_known_numbers() -> None:
    # 20 both yes, 5 the first alone, 10 the second alone, 15 both no: p_o 0.7, p_e 0.5, kappa 0.4.
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement([first, second])
    assert found.percent is not None and found.kappa is not None
    assert (found.n, found.kind) == (50, "cohen")
    assert found.percent.value == pytest.approx(0.7)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.kappa.low < 0.4 < found.kappa.high
    # The usual large-sample error, sqrt(p_o (1 - p_o) / n) / (1 - p_e) = 0.13.
    assert (found.kappa.high - found.kappa.low) / 4 == pytest.approx(0.13, rel=0.15)


def test_fleiss_kappa_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.6
    votes = [[bool(t) if rng.random() < 0.8 else not t for t in truth] for _ in range(4)]
    ratings = np.array(votes, dtype=float).T  # (items, judges)
    right = ratings.sum(axis=1)
    counts = np.stack([right, 4 - right], axis=1)
    per_item = ((counts**2).sum(axis=1) - 4) / (4 * 3)
    expected = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    found = agreement(votes)
    assert found.kind == "fleiss" and found.percent is not None and found.kappa is not None
    assert found.percent.value == pytest.approx(per_item.mean())
    assert found.kappa.value == pytest.approx((per_item.mean() - expected) / (1 - expected))


def test_what_somebody_did_not_score_is_left_out_and_counted() -> None:
    found = agreement([[True, None, False, True], [True, True, None, False]])
    assert (found.n, found.unscored) == (2, 2)
    assert found.percent is not None and found.percent.value == 0.5
    nothing = agreement([[None], [True]])
    assert (nothing.n, nothing.percent, nothing.kappa) == (0, None, None)
    same = agreement([[True, True], [True, True]])
    assert same.percent is not None and same.percent.value == 1 and same.kappa is None
    with pytest.raises(ValueError, match="two or more"):
        agreement([[True]])


def test_the_table_has_a_row_per_direction_and_category() -> None:
    judged = pairs(["red"] * 4)
    one = [Verdict(item.id, Direction.UNDERSTANDING, True) for item, _ in judged]
    other = [Verdict(item.id, Direction.UNDERSTANDING, item.category == "c0") for item, _ in judged]
    table = agreement_table(judged, {"a": one, "b": other})
    assert {name: found.percent.value for name, found in table.items() if found.percent} == {
        "understanding": 0.5,
        "understanding/c0": 1.0,
        "understanding/c1": 0.0,
    }
