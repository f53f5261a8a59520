import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapeval_lab.errors import UserError
from gapeval_lab.gap.records import Cells
from gapeval_lab.gap.table import ItemVerdict, cells, counts_array, encode, proportions, read_rows

VERDICT = st.sampled_from([True, False, None])
ITEMS = st.lists(st.builds(ItemVerdict, st.sampled_from("abc"), VERDICT, VERDICT), max_size=60)


@given(ITEMS)
@settings(deadline=None)
def test_cells_and_unscored_add_up_to_the_items_and_margins_match(items):
    table = cells(items, categories="abc")
    for name, found in table.items():
        own = [item for item in items if item.category == name]
        scored = [item for item in own if None not in item[1:]]
        assert found.n + found.unscored == len(own)
        assert found.n == len(scored)
        assert found.both + found.und_only == sum(item.understanding for item in scored)
        assert found.both + found.gen_only == sum(item.generation for item in scored)
    kept = {name: found for name, found in table.items() if found.n}
    assert np.allclose(proportions(kept).sum(axis=1), 1)


def test_each_pair_of_verdicts_has_its_cell():
    items = [
        ItemVerdict("a", True, True),
        *[ItemVerdict("a", True, False)] * 2,
        *[ItemVerdict("a", False, True)] * 3,
        *[ItemVerdict("a", False, False)] * 4,
        ItemVerdict("a", None, True),
        ItemVerdict("a", False, None),
    ]
    assert cells(items) == {"a": Cells(1, 2, 3, 4, unscored=2)}
    assert counts_array(cells(items).values()).tolist() == [[1, 2, 3, 4]]
    assert encode(items)["a"].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, -1, -1]


def test_categories_give_the_order_and_may_be_empty():
    items = [ItemVerdict("b", True, True), ItemVerdict("a", True, True)]
    assert list(cells(items)) == ["b", "a"]
    table = cells(items, categories=["a", "empty", "b"])
    assert list(table) == ["a", "empty", "b"]
    assert table["empty"] == Cells(0, 0, 0, 0)


def test_unknown_category_is_named():
    with pytest.raises(UserError, match="'c'.*a, b"):
        cells([ItemVerdict("c", True, True)], categories=["a", "b"])


def test_proportions_of_an_empty_category_are_refused():
    with pytest.raises(UserError, match="b has no item scored"):
        proportions({"a": Cells(1, 0, 0, 0), "b": Cells(0, 0, 0, 0, unscored=3)})


def write(path, text):
    file = path / "rows.json"
    file.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return file


def test_proportions_have_no_n(tmp_path):
    rows = read_rows(write(tmp_path, {"m": [[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0]]}))["m"]
    assert rows.proportions == ((0.1, 0.2, 0.3, 0.4), (1.0, 0.0, 0.0, 0.0))
    assert rows.counts is None
    assert rows.assumed_n == 1000


def test_counts_keep_their_n_and_a_row_of_one_item_is_a_count_beside_others(tmp_path):
    rows = read_rows(write(tmp_path, {"m": [[1, 2, 3, 4], [1, 0, 0, 0]]}))["m"]
    assert rows.counts == (Cells(1, 2, 3, 4), Cells(1, 0, 0, 0))
    assert rows.proportions[0] == (0.1, 0.2, 0.3, 0.4)
    assert rows.assumed_n is None


def test_rounded_proportions_are_accepted_up_to_the_published_limit(tmp_path):
    read_rows(write(tmp_path, {"m": [[0.333, 0.333, 0.33, 0.0]]}))
    with pytest.raises(UserError, match="sums to 0.99,"):
        read_rows(write(tmp_path, {"m": [[0.33, 0.33, 0.33, 0.0]]}))


def test_all_bad_rows_stand_in_one_message(tmp_path):
    data = {
        "good": [[0.25, 0.25, 0.25, 0.25]],
        "model x": [[0.5, 0.2, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [1.5, -0.5, 0, 0]],
        "model y": [[0.5, 0.5, 0]],
    }
    with pytest.raises(UserError) as caught:
        read_rows(write(tmp_path, data))
    message = str(caught.value)
    assert "rows.json: 3 bad" in message
    assert "model 'model x', row 1: [0.5, 0.2, 0.1, 0.1] sums to 0.9, not 1" in message
    assert "model 'model x', row 3: [1.5, -0.5, 0, 0] (sum 1) holds a negative number" in message
    assert "model 'model y', row 1: [0.5, 0.5, 0] is not a list of 4 numbers" in message
    assert "row 2" not in message and "good" not in message
    assert "[both, understanding only, generation only, neither]" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"m": [[0.5, 0.5', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"m": [], "m": []}', "m stands twice"),
        ("[[0.5, 0.5, 0, 0]]", "not an object of models"),
        ("{}", "not an object of models"),
        ('{"m": []}', "not a list of rows"),
        ('{"m": [0.5, 0.5, 0, 0]}', "row 1: 0.5 is not a list of 4 numbers"),
        ('{"m": [[[0.5, 0.5, 0, 0]]]}', "is not a list of 4 numbers"),
        ('{"m": [[true, 0, 0, 0]]}', "not a number"),
        ('{"m": [["1", 0, 0, 0]]}', "not a number"),
        ('{"m": [[NaN, 0.5, 0.5, 0]]}', "not finite"),
        ('{"m": [[Infinity, 0, 0, 0]]}', "not finite"),
        ('{"m": [[1' + "0" * 400 + ", 0, 0, 0]]}", "too large"),
        ('{"m": [[0, 0, 0, 0]]}', "(sum 0) is empty"),
        ('{"m": [[3, 4.5, 1, 0]]}', "sums to 8.5, not 1, and is not whole counts"),
        (
            '{"m": [[3, 4, 1, 0], [0.5, 0.5, 0, 0]]}',
            "row 1: [3, 4, 1, 0] sums to 8, beside rows of proportions",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, text, part):
    with pytest.raises(UserError) as caught:
        read_rows(write(tmp_path, text))
    assert part in str(caught.value)
    assert "rows.json" in str(caught.value)


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid JSON"):
        read_rows(tmp_path / "b.json")
