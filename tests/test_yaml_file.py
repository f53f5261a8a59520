"""YAML with lines, by the core schema of YAML 1.2."""

import math

import pytest

from gapeval_lab.errors import UserError
from gapeval_lab.yaml_file import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("1e400", math.inf),
        ("-.inf", -math.inf),
        ("3", 3),
        ("-3", -3),
        ("010", 10),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
        ("<<", "<<"),
        (".", "."),
        ("-", [None]),
        ("e5", "e5"),
    ],
)
def test_values(text, value):
    document = parse(text, "x")
    assert document.data == value
    assert type(document.data) is type(value)
    assert document.problems == []


def test_not_a_number():
    assert math.isnan(parse(".nan", "x").data)


def test_lines_of_keys_and_entries():
    document = parse("a: 1\nb:\n  c:\n    - x\n    - {d: 2}\n# end\ne: {f: 3}\n", "x")
    assert document.data == {"a": 1, "b": {"c": ["x", {"d": 2}]}, "e": {"f": 3}}
    assert document.lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", 0): 4,
        ("b", "c", 1): 5,
        ("b", "c", 1, "d"): 5,
        ("e",): 7,
        ("e", "f"): 7,
    }


def test_aliases_are_copied():
    data = parse("a: &x {b: [1]}\nc: *x\n", "x").data
    assert data == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert data["a"] is not data["c"]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", ("a",), "stands twice (lines 1 and 3)"),
        ("a: {b: 1, b: 2}", ("a", "b"), "stands twice (lines 1 and 1)"),
        ("a: !!python/name:os.system x", ("a",), "is not supported"),
        ("a: !mine x", ("a",), "is not supported"),
        ("a: !!int x", ("a",), "'x' is not a int"),
        ("a: !!bool x", ("a",), "'x' is not a bool"),
        ("? [1, 2]\n: 3\n", (), "a key is no text"),
        ("a: &x [*x]", ("a", 0), "an alias refers to the mapping or list that holds it"),
    ],
)
def test_problems_of_the_text(text, path, message):
    (problem,) = parse(text, "x").problems
    assert problem.path == path
    assert message in problem.message


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: [1\nb: 2\n", "line 2, column 2"),
        ("a: *nothing\n", "line 1, column 4"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("a: '\n", "line 2, column 1"),
        ("\x00", "x:"),
    ],
)
def test_what_is_no_yaml(text, where):
    with pytest.raises(UserError, match="not valid YAML") as caught:
        parse(text, "x")
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)
