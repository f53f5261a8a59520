"""Tables for people, on outcomes made by hand."""

import io

import pytest
from factories import make_outcome, with_protocols
from rich.console import Console

from gapeval_lab.report import draw_outcome
from gapeval_lab.report_cells import Row, draw_rows, hundredths
from gapeval_lab.report_protocols import protocol_data, protocol_note


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory):
    return make_outcome(tmp_path_factory.mktemp("outcome"))


def test_protocols_stand_side_by_side_in_each_measure(outcome) -> None:
    rows = protocol_data(with_protocols(outcome).quality)
    assert [row.label for row in rows] == ["reliability/direct", "reliability/whole", "locality/whole"]
    assert rows[0].cells[-1] == "" and rows[1].cells[-1] == "+0.100 [+0.050, +0.150]"
    assert rows[1].cells[1:3] == ("10 % [8, 12]", "90 % [88, 92]")


def test_what_was_not_written_or_not_scored_is_said(outcome) -> None:
    quality = with_protocols(outcome).quality
    assert protocol_note(quality) == "whole: nothing written for 2 drawings after, so asked for directly"
    empty = [protocol.model_copy(update={"cells": {}, "unwritten": 0}) for protocol in quality.protocols]
    assert protocol_note(quality.model_copy(update={"protocols": empty})) == "no drawing was scored"


def test_the_section_is_there_only_where_it_was_asked_for(outcome) -> None:
    def printed(what) -> str:
        console = Console(width=140, file=io.StringIO(), record=True)
        console.print(draw_outcome(what))
        return console.export_text()

    assert "Drawn directly" not in printed(outcome)
    assert "Drawn directly, and from what the model wrote first" in printed(with_protocols(outcome))


@pytest.mark.parametrize(("share", "text"), [(-0.02, "−2"), (-0.001, "0"), (0.004, "0"), (0.995, "100")])
def test_percentages_have_a_real_minus_and_no_minus_zero(share: float, text: str) -> None:
    assert hundredths(share) == text


@pytest.mark.parametrize("width", [30, 50, 70, 200])
def test_a_table_loses_no_letter_of_a_number_in_a_narrow_terminal(width: int) -> None:
    columns = ("gap before → after", "shift [95 %]", "reliability")
    rows = [
        Row("1 lora-wk-text-r16, seed 0", ("0.208 → 0.191", "−0.017 [−0.038, +0.031]", "100 % / 100 %")),
        Row("2 memit", ("0.397 → 0.420", "+0.022 [−0.060, +0.091]", "98 % / 87 %"), strong=True),
    ]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(draw_rows("Edits", columns, rows, head="run"))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert all(word in words for row in rows for cell in row.cells for word in cell.split())
    assert all(row.label in text for row in rows) and "…" not in text
    assert (text.count("reliability") == 2) == (width == 30)  # a list names each cell
