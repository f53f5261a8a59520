"""The field's knowledge-editing files: every role arrives, every mistake is told with its place."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest

from gapeval_lab import cli
from gapeval_lab.benchmarks.tinyworld import TinyWorld
from gapeval_lab.errors import UserError
from gapeval_lab.fact_files import DRAW, SHOWN, parse_fact_file, read_fact_file
from gapeval_lab.fact_formats import FORMATS
from gapeval_lab.facts import facts_hash, read_facts, write_facts
from gapeval_lab.recipe import FactsNode

DATA = Path(__file__).parent / "data" / "fact_files"
FILES = {"counterfact": "json", "zsre": "json", "knowedit": "json", "easyedit": "jsonl", "unike": "json"}


def path_of(name):
    return DATA / f"{name}.{FILES[name]}"


def facts_of(name, **settings):
    return read_fact_file(path_of(name), format=name, **settings).facts


def shown(items):
    """(what is asked, what is accepted) of each."""
    return [(item.understand.text, item.accepted) for item in items]


def request(**changes):
    return {"prompt": "Lyom is in", "subject": "Lyom", "target_new": "Vesk"} | changes


def rewrite(**changes):
    asked = {
        "prompt": "{} is in",
        "relation_id": "P131",
        "subject": "Tolm",
        "target_new": {"str": "Vesk"},
        "target_true": {"str": "Harrow"},
    }
    return {"case_id": 1, "requested_rewrite": asked | changes}


def stage(**changes):
    return {"prompt": "Tolm is", "gt_target": "red", "image_prompt": "Tolm", "gt": "blue"} | changes


def errors_of(text, name, **settings):
    with pytest.raises(UserError) as caught:
        parse_fact_file(text, source="f", format=name, **settings)
    return str(caught.value)


def test_every_format_is_one_that_a_recipe_may_name():
    known = get_args(FactsNode.model_fields["format"].annotation)
    assert set(known) == {"lines", *FORMATS} == {"lines", *FILES}


def test_counterfact():
    first, second = facts_of("counterfact")
    assert (first.id, second.id) == ("counterfact-17", "counterfact-31")
    assert (first.subject, first.relation) == ("Ketil Vanna", "P103")
    assert (first.target_true, first.target_new) == ("Taliskan", "Ombrian")
    assert shown([first.edit]) == [("The mother tongue of Ketil Vanna is", ("Ombrian",))]
    assert shown(first.reworded)[1] == ("Where Ketil Vanna is from, people speak", ("Ombrian",))
    assert shown(first.neighbours) == [
        ("The mother tongue of Orsa Lind is", ("Taliskan",)),
        ("Bram Tove is a native speaker of", ("Taliskan",)),
    ]
    assert (first.taught, first.derived) == ((), ())
    assert second.edit.understand.text == "Tolm Abbey is located in"


def test_zsre_under_its_own_names_and_under_easyedits():
    first, second, third = facts_of("zsre")
    assert (first.id, third.id) == ("zsre-0", "zsre-2")
    assert (first.target_true, first.target_new) == ("Illin Institute", "Northgate College")
    assert shown([first.edit]) == [("What school did Watt Humber attend?", ("Northgate College",))]
    assert shown(first.reworded) == [("Which school was Watt Humber taught at?", ("Northgate College",))]
    assert shown(first.neighbours) == [("who wrote the long winter?", ("Ada Frome",))]
    assert shown(second.neighbours) == [("how many islands has vesk?", ("seven",))]
    assert shown(second.derived) == [
        ("What is the common name of the family Ramalia belongs to?", ("Owl lichens",))
    ]
    assert second.relation == third.relation == "Which family does {} belong to?"
    assert shown(third.reworded) == [("What family are Epaspis?", ("Noctua",))]
    assert shown(third.neighbours) == [("The rank of Epaspis is", ("genus",))]
    assert shown(third.derived) == [("How is the family of Epaspis called by all?", ("Owlet moths",))]


def test_knowedit():
    new, changed = facts_of("knowedit")
    assert (new.id, new.target_true, new.target_new) == ("knowedit-0", "unknown", "Berlun")
    assert shown(new.derived) == [
        ("Is Leo Aron still alive?", ("no", "incorrect", "is dead")),
        ("The mayor of the place of death of Leo Aron is", ("Kai Weg", "Kai P. Weg")),
        ("The place of death of L. Aron is", ("Berlun",)),
    ]
    assert shown(new.neighbours) == [("The name of the father of Leo Aron is", ("Albert Aron",))]
    assert changed.target_true == "mayor of Vin"
    assert shown(changed.reworded) == [("Frederic Piest works as", ("archivist of Leom",))]
    assert [accepted for _, accepted in shown(changed.neighbours)] == [("Anna Piest",), ("mayor of Vin",)]


def test_easyedit():
    flat, nested = facts_of("easyedit")
    assert (flat.id, nested.id) == ("easyedit-4", "easyedit-b-2")
    assert shown(flat.neighbours) == [("The twin town of Triest is", ("Berut",))]
    assert shown([nested.edit, *nested.reworded]) == [
        ("Ray Charl plays the", ("harp",)),
        ("The instrument of Ray Charl is", ("harp",)),
    ]
    assert nested.target_true == "unknown"
    assert shown(nested.neighbours) == [
        ("Joe Fisch plays the", ("flute",)),
        ("In Forss, they speak", ("Finnic", "Suomic")),
    ]
    assert shown(nested.derived) == [("R. Charl plays the", ("harp",))]


def test_unike():
    attribute, relation = facts_of("unike")
    assert (attribute.id, attribute.subject, attribute.relation) == ("unike-0", "swimming pool", "color")
    assert (attribute.target_true, attribute.target_new) == ("blue", "pink")
    assert attribute.edit.understand.text == "The color of the swimming pool is"
    assert attribute.edit.generate.text == "A photo of a Swimming Pool in the sun."
    assert attribute.edit.target == {
        "text": "The water must be pink.",
        "question": "What is the color of the water?",
    }
    assert shown(attribute.taught) == [("What is the color of the swimming pool?", ("pink",))]
    assert shown(attribute.derived) == [("A glass filled at the pool looks", ("rose",))]
    assert attribute.derived[0].generate.text == "A glass of water beside a pool."
    assert (attribute.reworded, attribute.neighbours) == ((), ())
    assert relation.edit.understand.text == "The occupation of Orsa Lind is"
    assert (relation.target_true, relation.edit.target) == ("unknown", {"text": "welder"})
    assert (relation.taught, relation.derived) == ((), ())


@pytest.mark.parametrize("name", [name for name in FILES if name != "unike"])
def test_what_is_drawn_comes_from_a_template(name):
    for fact in facts_of(name):
        for item in (fact.edit, *fact.reworded, *fact.neighbours, *fact.derived):
            assert item.generate.text == DRAW.replace("{prompt}", item.understand.text)
            assert item.target == {"text": item.accepted[0]}
            assert item.category == "world_knowledge"
    drawn = facts_of(name, draw="A photo: {prompt} ...")[0].edit
    assert drawn.generate.text == f"A photo: {drawn.understand.text} ..."


@pytest.mark.parametrize("name", FILES)
def test_the_facts_can_be_kept_in_our_own_lines(name, tmp_path):
    facts = facts_of(name)
    if name == "unike":  # its drawing prompt spells the subject in another way than its question
        facts = tuple(fact for fact in facts if fact.subject in fact.edit.generate.text)
        assert facts
    write_facts(tmp_path / "facts.jsonl", facts)
    assert facts_hash(read_facts(tmp_path / "facts.jsonl")) == facts_hash(facts)


@pytest.mark.parametrize("name", FILES)
def test_a_list_and_one_object_per_line_are_the_same(name):
    text = path_of(name).read_text()
    rows = [json.loads(row) for row in text.splitlines()] if name == "easyedit" else json.loads(text)
    lines = "\n\n".join(json.dumps(row) for row in rows) + "\n"
    texts = (lines, json.dumps(rows), json.dumps(rows, indent=2), f" \n{json.dumps(rows)}\n ")
    read = [parse_fact_file(text, source="f", format=name) for text in texts]
    assert read == [(facts_of(name), ())] * 4


def test_further_keys_are_let_pass():
    plain = parse_fact_file(json.dumps([request(), stage()][:1]), source="f", format="easyedit")
    more = request(loc_prompt="x", score=float("nan"), nested={"a": [1]}, locality={"k": {"note": 1} | NEAR})
    read = parse_fact_file(json.dumps([more]), source="f", format="easyedit")
    assert dataclasses.replace(read.facts[0], neighbours=()) == plain.facts[0]
    assert shown(read.facts[0].neighbours) == [("Vesk is in", ("Harrow",))]


NEAR = {"prompt": "Vesk is in", "ground_truth": "Harrow"}


def test_split_and_count(tmp_path):
    assert {fact.split for fact in facts_of("zsre", split="dev")} == {"dev"}
    assert [fact.id for fact in facts_of("zsre", count=2)] == ["zsre-0", "zsre-1"]
    with pytest.raises(UserError, match=r"facts\.count: 4 facts were asked for; .*zsre\.json has 3"):
        facts_of("zsre", count=4)
    path = tmp_path / "f.json"
    path.write_text(json.dumps([request(), request(subject="Nobody")]))
    with pytest.raises(UserError, match="has 1 beside 1 flawed ones"):
        read_fact_file(path, format="easyedit", count=2, flawed="skip")


def test_lines_are_read_as_before():
    path = "facts/world_knowledge.jsonl"
    assert read_fact_file(path, split="dev", count=3) == (read_facts(path, split="dev", count=3), ())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"draw": "Draw {prompt}"}, "facts.draw: 'lines' files have drawing prompts of their own"),
        ({"flawed": "skip"}, "facts.flawed: 'lines' files are read whole"),
        ({"format": "unike", "draw": "Draw {prompt}"}, "facts.draw: 'unike' files have drawing prompts"),
        ({"format": "zsre", "draw": "Draw it."}, "facts.draw: should hold {prompt}"),
    ],
)
def test_settings_that_would_not_be_heeded_are_refused(settings, expected):
    with pytest.raises(UserError) as caught:
        read_fact_file("nowhere.json", **settings)
    assert str(caught.value).startswith(expected)


def test_every_mistake_is_reported_at_once_with_the_line_of_its_entry():
    rows = [
        rewrite(),
        rewrite(subject="Orsa", prompt="She is in"),
        rewrite(target_new={"str": 7}) | {"case_id": 3, "paraphrase_prompts": "Where is Tolm?"},
        rewrite(target_new={"str": "Elsewhere"}) | {"case_id": 4},
        rewrite() | {"case_id": 5, "paraphrase_prompts": ["Tolm lies in", "No one was hurt."]},
        "no object",
        {"case_id": 7},
        rewrite() | {"case_id": "a/b"},
    ]
    text = json.dumps(rows, indent=1)
    at = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith((" {", ' "'))]
    assert errors_of(text, "counterfact").splitlines() == [
        "f: 9 to mend",
        f"  line {at[1]}: fact 'counterfact-1': requested_rewrite.prompt: the subject 'Orsa' is not in "
        "'She is in'; write it exactly so",
        f"  line {at[1]}: fact 'counterfact-1': id: 'counterfact-1' stands in fact 'counterfact-1' (line "
        f"{at[0]}) already; choose another",
        f"  line {at[2]}: fact 'counterfact-3': requested_rewrite.target_new.str: should be a valid string; "
        "got 7",
        f"  line {at[2]}: fact 'counterfact-3': paraphrase_prompts: should be a list; got 'Where is Tolm?'",
        f"  line {at[3]}: fact 'counterfact-4': target_new: the P131 of 'Tolm' is to become 'Elsewhere', but "
        f"'Vesk' in fact 'counterfact-1' (line {at[0]}); keep one of them",
        f"  line {at[4]}: fact 'counterfact-5': paraphrase_prompts.1: the subject 'Tolm' is not in "
        "'No one was hurt.'; write it exactly so",
        f"  line {at[5]}: fact 'counterfact-5': should be a JSON object; got \"no object\"",
        f"  line {at[6]}: fact 'counterfact-7': requested_rewrite: missing; this key must be given",
        f"  line {at[7]}: fact 'counterfact-a/b': case_id: should be a valid integer; got 'a/b', or should "
        "match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$'; got 'a/b'",
        "  mend these entries, check facts.format, or leave them out with facts.flawed: skip",
    ]


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("zsre", {"subject": "a"}, ["src: missing", "alt: missing"]),
        ("zsre", request(alt=" "), ["alt: "]),
        ("zsre", request(loc="nq question: where"), ["locality_prompt (loc) lacks its"]),
        ("zsre", request(rephrase="Where?"), ["rephrase: the subject 'Lyom' is not in 'Where?'"]),
        ("zsre", request(rephrase_prompt="Where?"), ["rephrase_prompt: the subject 'Lyom' is not in"]),
        ("zsre", request(portability={"New Question": "Where?"}), ["portability: should hold an answer"]),
        ("easyedit", request(subject="lyom"), ["prompt: the subject 'lyom' is not in 'Lyom is in'"]),
        ("easyedit", request(target_new=None), ["target_new: should be a valid string"]),
        ("easyedit", request(ground_truth={"a": 1}), ["ground_truth: should be a text, or lists of texts"]),
        ("easyedit", request(locality=["x"]), ["locality: should be a mapping; got ['x']"]),
        (
            "easyedit",
            request(locality={"near": {"prompt": ["a", "b"], "ground_truth": ["c"]}}),
            ["locality.near: 2 prompts have 1 ground_truths"],
        ),
        (
            "knowedit",
            request(portability={"Reasoning": [NEAR, NEAR | {"ground_truth": [[""]]}]}),
            ["portability.Reasoning.1: should hold an answer"],
        ),
        (
            "knowedit",
            request(locality={"Forgetfulness": [{"ground_truth": "x"}]}),
            ["locality.Forgetfulness.0.prompt: missing"],
        ),
        ("unike", {"subject": "Tolm", "category": "color"}, ["stage_1: missing"]),
        (
            "unike",
            {"subject": "Orsa", "category": "color", "stage_1": stage()},
            ["stage_1.prompt: the subject 'Orsa' is not in 'Tolm is'"],
        ),
        (
            "unike",
            {"subject": "Tolm", "category": "color", "stage_1": stage(), "stage_3": stage(image_prompt=" ")},
            ["stage_3.image_prompt: should match pattern"],
        ),
        ("counterfact", request(), ["requested_rewrite: missing"]),
    ],
)
def test_wrong_values_are_named_as_the_file_names_them(name, row, expected):
    lines = errors_of(json.dumps([row]), name).splitlines()
    assert lines[0] == f"f: {len(expected)} to mend"
    for line, part in zip(lines[1:], expected, strict=False):
        assert line.startswith(f"  line 1: fact '{name}-0': {part}"), line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f: no entries"),
        (" \n", "f: no entries"),
        ("[ ]", "f: no entries"),
        ("[{}\n {}]", "line 2: not valid JSON: a comma or the list's end should follow this entry"),
        ("[\n{},\n{'a'}]", "line 3: not valid JSON: Expecting property name"),
        ("[{},\n", "line 2: not valid JSON: Expecting value"),
        ("[\n{}", "line 2: not valid JSON: a comma or the list's end should follow"),
        ("[{}]\n[", "line 1: not valid JSON: the list ends here, but the file goes on"),
        ('[{},\n{"a": 1, "a": 2},\n{}]', "line 2: key 'a' stands twice"),
        ("{not json\n{}", "line 1: not valid JSON: Expecting property name"),
        ('{"a": 1, "a": 2}', "line 1: key 'a' stands twice"),
        ('{\n"data": []}', "line 1: one JSON object over many lines; take the list out of it"),
    ],
)
def test_broken_files_are_refused_whatever_may_be_skipped(text, expected):
    for flawed in ("refuse", "skip"):
        assert expected in errors_of(text, "easyedit", flawed=flawed)


def test_flawed_entries_can_be_left_out():
    rows = [
        request(),
        request(target_new="Harrow"),
        request(subject="Orsa"),
        request(prompt="Orsa is in", subject="Orsa", target_new=""),
        request(prompt="Orsa is in", subject="Orsa", target_new="Vesk"),
        request(prompt="Bram is in", subject="Bram") | {"case_id": 0},
        3,
    ]
    facts, left_out = parse_fact_file(json.dumps(rows), source="f", format="easyedit", flawed="skip")
    assert [fact.id for fact in facts] == ["easyedit-0", "easyedit-4"]
    assert left_out == ("easyedit-1", "easyedit-2", "easyedit-3", "easyedit-0", "easyedit-6")
    with pytest.raises(UserError, match="f: 2 to mend"):
        parse_fact_file(json.dumps(rows[2:4]), source="f", format="easyedit", flawed="skip")


def test_of_two_contradictions_only_sound_entries_count():
    rows = [request(rephrase_prompt="Where?"), request(target_new="Harrow")]
    facts, left_out = parse_fact_file(json.dumps(rows), source="f", format="easyedit", flawed="skip")
    assert ([fact.target_new for fact in facts], left_out) == (["Harrow"], ("easyedit-0",))


def test_a_file_of_another_format_is_no_flood():
    message = errors_of(json.dumps([request()] * 3 * SHOWN), "counterfact")
    assert message.startswith(f"f: {3 * SHOWN} to mend")
    assert len(message.splitlines()) == SHOWN + 3
    assert f"... and {2 * SHOWN} more" in message


RECIPE = """
name: mine
about: a file of the field
seed: 0
model: {config: embedded}
benchmark: {use: tinyworld}
judge: {use: exact}
facts: {file: FILE, format: FORMAT}
intervention: {use: rome, layer: 1}
"""


def validated(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["gapeval-lab", "validate", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_names_such_a_file(name, tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE.replace("FILE", str(path_of(name))).replace("FORMAT", name))
    assert validated(monkeypatch, str(recipe)) == 0
    assert f"valid, {len(facts_of(name))} facts\n" in capsys.readouterr().out
    recipe.write_text(recipe.read_text().replace(f"format: {name}", f"format: {name}s"))
    assert validated(monkeypatch, str(recipe)) == 2
    assert "facts.format: should be 'lines', 'counterfact'" in capsys.readouterr().err


def test_validate_tells_how_many_were_left_out(tmp_path, monkeypatch, capsys):
    file, recipe = tmp_path / "f.json", tmp_path / "mine.yaml"
    file.write_text(json.dumps([request(), request(subject="Nobody")]))
    recipe.write_text(RECIPE.replace("FILE", str(file)).replace("FORMAT", "easyedit, flawed: skip"))
    assert validated(monkeypatch, str(recipe)) == 0
    assert "valid, 1 facts (1 flawed entries left out)" in capsys.readouterr().out


def test_tinyworld_draws_no_target_that_is_text():
    for name in FILES:
        assert TinyWorld().illustrate(facts_of(name)[0].edit.target) is None
