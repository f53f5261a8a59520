"""Fact files: everything wrong is named at once; what is written reads back the same."""

import dataclasses
import json

import pytest

from gapeval_lab.errors import UserError
from gapeval_lab.facts import facts_hash, item_id, parse_facts, read_facts, write_facts
from gapeval_lab.items import Direction


def probe(question="What colour is zorb?", **changes):
    return {
        "understand": question,
        "generate": "Draw zorb.",
        "accepted": ["blue", "It is blue."],
        "target": {"grid": ["zorb", None], "colour": "blue"},
    } | changes


def line(**changes):
    return {
        "id": "zorb-colour",
        "subject": "zorb",
        "relation": "colour",
        "target_true": "red",
        "target_new": "blue",
        "split": "test",
        "category": "world_knowledge",
        "edit": probe(),
        "reworded": [probe("Tell me zorb's colour."), probe("zorb has which colour?")],
        "neighbours": [probe("What colour is plim?", generate="Draw plim.", accepted=["green"])],
        "derived": [probe("Which fruit has this creature's colour?", generate="Draw such a fruit.")],
    } | changes


def text_of(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def errors_of(text):
    with pytest.raises(UserError) as caught:
        parse_facts(text, source="facts.jsonl")
    return str(caught.value)


def test_a_line_becomes_a_fact_with_items_for_both_directions():
    (fact,) = parse_facts(text_of(line()), source="facts.jsonl")
    assert (fact.subject, fact.relation, fact.target_true, fact.target_new) == (
        "zorb",
        "colour",
        "red",
        "blue",
    )
    assert fact.edit.id == item_id("zorb-colour", "edit") == "zorb-colour.edit.0"
    assert [item.id for item in fact.reworded] == ["zorb-colour.reworded.0", "zorb-colour.reworded.1"]
    assert fact.edit.prompt(Direction.UNDERSTANDING).text == "What colour is zorb?"
    assert fact.edit.prompt(Direction.GENERATION).text == "Draw zorb."
    assert fact.edit.accepted == ("blue", "It is blue.")
    assert fact.edit.target == {"grid": ["zorb", None], "colour": "blue"}
    assert {(i.category, i.subcategory) for i in (fact.edit, *fact.neighbours, *fact.derived)} == {
        ("world_knowledge", "colour")
    }
    (other,) = parse_facts(text_of(line(subcategory="creatures")), source="facts.jsonl")
    assert other.derived[0].subcategory == "creatures"


def test_what_may_be_left_out():
    short = {k: v for k, v in line().items() if k not in ("split", "reworded", "neighbours", "derived")}
    (fact,) = parse_facts(text_of(short), source="facts.jsonl")
    assert (fact.split, fact.reworded, fact.neighbours, fact.derived) == ("test", (), (), ())


def test_every_mistake_is_reported_at_once_with_its_line():
    message = errors_of(
        "{not json\n"
        + "\n"
        + text_of(
            line(id="a", edit=probe(question="What colour is it?")),
            line(id="b", reworded=[probe(), probe(generate="Draw it.")]),
            line(id="c", target_new=""),
            line(id="a", subject="zorb"),
            line(id="d", target_new="green"),
            line(id="e", relaton="colour", edit=probe(acepted=["x"])),
            [1, 2],
        )
        + '{"id": "f", "id": "g"}\n'
    )
    assert message.startswith("facts.jsonl: 10 to mend\n")
    for part in (
        "line 1: not valid JSON",
        "line 3: fact 'a': edit.understand: the subject 'zorb' is not in 'What colour is it?'",
        "line 4: fact 'b': reworded.1.generate: the subject 'zorb' is not in 'Draw it.'",
        "line 5: target_new: ",
        "line 6: id: 'a' stands in line 3 already",
        "line 7: target_new: the colour of 'zorb' is to become 'green', but 'blue' in line 3",
        "line 8: relaton: unknown key; did you mean 'relation'?",
        "line 8: edit.acepted: unknown key; did you mean 'accepted'?",
        "line 9: should be a JSON object; got [1, 2]",
        "line 10: key 'id' stands twice",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"edit": None}, "edit: "),
        ({"edit": []}, "edit: "),
        ({"target_true": "  "}, "target_true: "),
        ({"edit": probe(accepted=[])}, "edit.accepted: "),
        ({"edit": probe(accepted=[""])}, "edit.accepted.0: "),
        ({"edit": probe(target="blue")}, "edit.target: "),
        ({"subject": 7}, "subject: should be a valid string; got 7"),
        ({"id": "a/b"}, "id: "),
        ({"derived": probe()}, "derived: "),
    ],
)
def test_wrong_values_are_named_by_their_path(changes, expected):
    message = errors_of(text_of(line(**changes)))
    assert message.startswith(f"facts.jsonl: 1 to mend\n  line 1: {expected}")


@pytest.mark.parametrize(
    "key", ["id", "subject", "relation", "target_true", "target_new", "category", "edit"]
)
def test_missing_keys_are_named(key):
    row = line()
    del row[key]
    assert f"line 1: {key}: missing" in errors_of(text_of(row))


def test_the_subject_is_wanted_as_written():
    assert "edit.generate: the subject 'zorb'" in errors_of(text_of(line(edit=probe(generate="Draw Zorb."))))


def test_the_same_fact_under_two_ids_is_no_contradiction():
    assert len(parse_facts(text_of(line(id="a"), line(id="b")), source="x")) == 2


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_an_error(text):
    assert "the file is empty" in errors_of(text)


def test_read_facts_chooses_split_and_count_in_order(tmp_path):
    path = tmp_path / "facts.jsonl"
    rows = [line(id=f"f{n}", split="train" if n == 1 else "test") for n in range(4)]
    path.write_text("\ufeff" + text_of(*rows).replace("\n", "\r\n"), encoding="utf-8")
    assert [fact.id for fact in read_facts(path)] == ["f0", "f2", "f3"]
    assert [fact.id for fact in read_facts(path, split="train")] == ["f1"]
    assert [fact.id for fact in read_facts(str(path), count=2)] == ["f0", "f2"]
    with pytest.raises(UserError, match=r"facts\.count: 4 facts of 'test'.* has 3"):
        read_facts(path, count=4)
    with pytest.raises(UserError, match=r"facts\.split: .*no split 'dev'; it has test \(3\), train \(1\)"):
        read_facts(path, split="dev")


def test_the_whole_file_is_checked_whatever_the_split(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(text_of(line(), line(id="b", split="train", edit=probe("no subject"))))
    with pytest.raises(UserError, match="line 2"):
        read_facts(path, split="test")


def test_files_are_looked_up_like_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "recipes" / "facts" / "mine.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text(text_of(line()))
    assert read_facts("facts/mine.jsonl")[0].id == "zorb-colour"
    with pytest.raises(UserError, match=r"did you mean 'facts/mine\.jsonl'\?"):
        read_facts("facts/mime.jsonl")
    place.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not UTF-8"):
        read_facts("facts/mine.jsonl")


def test_written_facts_read_back_the_same(tmp_path):
    facts = parse_facts(
        text_of(
            line(),
            line(
                id="b", split="train", subject="grün", edit=probe("grün\u2028?", generate="grün"), reworded=[]
            ),
            line(id="c", subcategory="creatures"),
        ),
        source="x",
    )
    path = tmp_path / "facts.jsonl"
    write_facts(path, facts)
    assert parse_facts(path.read_text(encoding="utf-8"), source="x") == facts
    assert path.read_text(encoding="utf-8").count("grün") == 3
    assert facts_hash(read_facts(path, split="train")) == facts_hash(facts[1:2])


def test_write_refuses_what_could_not_be_read_back(tmp_path):
    (fact,) = parse_facts(text_of(line()), source="x")
    path = tmp_path / "facts.jsonl"
    with pytest.raises(UserError, match="line 2: id: 'zorb-colour' stands in line 1"):
        write_facts(path, [fact, fact])
    odd = (
        dataclasses.replace(fact.edit, id="mine"),
        dataclasses.replace(fact.edit, choices=("a", "b")),
        dataclasses.replace(fact.edit, tags={"group": "x"}),
        dataclasses.replace(fact.edit, category="other"),
    )
    for edit in odd:
        with pytest.raises(ValueError, match="would not give the same facts"):
            write_facts(path, [dataclasses.replace(fact, edit=edit)])
    assert not path.exists()


def test_hash_sees_everything_and_the_order():
    base = parse_facts(text_of(line(), line(id="b")), source="x")
    variants = [
        base,
        base[::-1],
        base[:1],
        *(
            parse_facts(
                text_of(line(**{"target_new": "teal", **change}), line(id="b", target_new="teal")), source="x"
            )
            for change in (
                {},
                {"target_true": "pink"},
                {"split": "train"},
                {"category": "other"},
                {"edit": probe(accepted=["blue"])},
                {"reworded": []},
                {"neighbours": [], "derived": [probe()]},
                {"neighbours": [probe()], "derived": []},
            )
        ),
    ]
    assert len({facts_hash(facts) for facts in variants}) == len(variants)
    assert facts_hash(parse_facts(text_of(line(), line(id="b")), source="y")) == facts_hash(base)
