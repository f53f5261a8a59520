"""An Outcome as plain values: names, tags, params, metrics, note, tables, pictures, figure."""

import json
import subprocess
import sys
import zipfile

import pytest
from factories import CATEGORIES, make_outcome, with_protocols, without_after
from PIL import Image

from gapeval_lab import tracking_pictures, tracking_scalars, tracking_tables, tracking_values
from gapeval_lab.gap.records import Estimate
from gapeval_lab.outcome import Emergence, EmergencePoint, Stage
from gapeval_lab.tracking_figure import draw_gap_shift, gap_shift_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("outcome")


@pytest.fixture(scope="module")
def outcome(folder):
    return make_outcome(folder)


def test_importing_the_tracking_modules_imports_no_heavy_package():
    code = """
import sys
import gapeval_lab.tracking
heavy = {"mlflow", "matplotlib", "torch", "sqlalchemy"} & set(sys.modules)
raise SystemExit(str(heavy) if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (-0.03, -0.04, -0.01, "gap closed"),
        (0.03, 0.01, 0.04, "gap widened"),
        (-0.03, -0.07, 0.01, "no change"),
        (-0.03, -0.06, 0.0, "no change"),
    ],
)
def test_the_interval_decides_the_verdict(value, low, high, word):
    assert tracking_values.verdict(Estimate(value, low, high)) == word


@pytest.mark.parametrize(
    ("settings", "targets", "direction", "name"),
    [
        ({"use": "rome", "layers": [2]}, ["world_knowledge"], "text", "rome-wk-text-L2"),
        ({"use": "memit", "layers": [4, 2, 3]}, ["reasoning"], "image", "memit-rea-image-L2-4"),
        ({"use": "lora", "rank": 16, "layers": [1]}, ["a_b", "c"], "both", "lora-ab+c-both-r16"),
        ({"use": "finetune", "layer": 3}, [], "text", "finetune-all-text-L3"),
        ({"use": "easyedit"}, ["reasoning"], "text", "easyedit-rea-text"),
        ({"use": "saved", "delta": "a/file", "scale": -0.5}, ["reasoning"], "text", "saved-rea-text-x-0.5"),
    ],
)
def test_run_names(settings, targets, direction, name):
    assert tracking_values.run_name({"intervention": settings}, targets=targets, direction=direction) == name


def test_a_run_of_several_interventions_names_them_all():
    recipe = {"intervention": {"use": "lora", "rank": 8}, "then": [{"intervention": {"use": "rome"}}]}
    assert tracking_values.run_name(recipe, targets=["reasoning"], direction="both") == "lora+rome-rea-both"


def test_a_recipe_is_flattened_to_the_paths_that_overrides_use():
    flat = tracking_values.flatten({"a": {"b": 1, "c": [1, 2]}, "d": None, "e": "x", "f": {}, "g→h": True})
    assert flat == {"a.b": "1", "a.c": "[1, 2]", "d": "null", "e": "x", "f": "{}", "g_h": "true"}


def test_a_long_param_is_cut_and_says_so(outcome):
    long = outcome.model_copy(update={"recipe": outcome.recipe | {"about": "x" * 9000}})
    value = tracking_values.params(long)["about"]
    assert len(value) == 6000
    assert value.endswith("[cut; whole in recipe/resolved.yaml]")


def test_numbers_that_are_none_or_not_finite_are_left_out(outcome):
    broken = outcome.model_copy(update={"peak_memory_gib": float("nan"), "placebo": None})
    found = tracking_scalars.scalars(broken)
    assert "memory/peak_gib" not in found
    assert "placebo/gap_score" not in found
    assert "edit/portability/image" not in found  # not asked in pictures
    assert found["edit/portability/text"] == 0.3
    assert found["delta/off_target"] == 0.0073
    assert (found["low/gap_score"], found["high/gap_score"]) == (-0.035, -0.025)
    assert found["official/rounding_band"] == 0.03


def test_many_categories_do_not_make_many_metrics(outcome):
    shift = outcome.shift
    many = {f"c{n}": shift.categories["reasoning"] for n in range(10)}
    states = {f"c{n}": outcome.before.gap.categories["reasoning"] for n in range(10)}
    gap = type(outcome.before.gap)(**(vars(outcome.before.gap) | {"categories": states}))
    wide = outcome.model_copy(
        update={
            "before": outcome.before.model_copy(update={"gap": gap}),
            "after": outcome.after.model_copy(update={"gap": gap}),
            "shift": type(shift)(**(vars(shift) | {"categories": many})),
        }
    )
    found = tracking_scalars.scalars(wide)
    assert "low/c3" not in found
    assert {"low/gap_score", "delta/c3"} <= set(found)


def test_norms_are_taken_together_over_layers():
    norms = {
        "model.layers.0.mlp.down_proj.weight": 3.0,
        "model.layers.1.mlp.down_proj.weight": 4.0,
        "lm_head.weight": 1.0,
    }
    assert tracking_scalars.delta_norms(norms) == {"mlp.down_proj": 5.0, "lm_head": 1.0}


def test_a_delta_is_a_few_metrics_and_a_table(outcome):
    found = tracking_scalars.scalars(outcome)
    assert (found["delta_norm/total"], found["delta_norm/mlp.down_proj"]) == (5.0, 5.0)
    assert found["delta_rank/stable_mean"] == 2.25  # 3^2 / 2^2; the other has no spectrum
    assert tracking_values.params(outcome)["delta_address"] == "78" * 32
    table = tracking_tables.norms(outcome)
    assert table.columns == ("parameter", "norm", "stable_rank", "s1", "s2")
    assert table.rows[0] == ["model.layers.0.mlp.down_proj.weight", 3.0, 2.25, 2.0, 2.236]
    assert table.rows[1] == ["model.layers.1.mlp.down_proj.weight", 4.0, None, None, None]
    older = outcome.model_copy(update={"delta_spectrum": {}, "delta_norms": {"a": 1.23456e-7}})
    assert tracking_tables.norms(older).rows == [["a", 1.235e-07, None]]
    assert "delta_rank/stable_mean" not in tracking_scalars.scalars(older)
    base = tracking_scalars.scalars(without_after(outcome))
    assert not [key for key in base if key.startswith(("delta_norm", "delta_rank"))]


def test_colours_follow_the_method_and_spare_trials(outcome):
    def shade(method, kind="edit"):
        changed = outcome.model_copy(update={"kind": kind, "recipe": {"intervention": {"use": method}}})
        return tracking_values.color(changed)

    assert shade("rome") != shade("memit")
    assert shade("mine") == shade("mine") is not None
    assert shade("rome", "trial") is None
    assert shade("rome", "baseline") == tracking_values.BASELINE_COLOR


def test_a_small_number_is_never_minus_zero():
    assert tracking_values.signed(-0.0001) == "0.000"
    assert tracking_values.signed(-0.0294) == "−0.029"
    assert tracking_values.signed(0.5) == "+0.500"


def test_the_note_says_what_went_wrong(outcome):
    note = tracking_values.note(outcome.model_copy(update={"reverted": False}), links={})
    assert "NOT restored" in note
    assert "20 items (1 not scored)" in note
    assert "| reliability | 0.10 → 0.90 | 0.10 → 0.40 |" in note
    assert "| portability | 0.00 → 0.30 | n/a |" in note
    assert "Compare with the baseline" not in note


def test_a_table_refuses_what_the_browser_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        tracking_tables.Table("x", ("a",), [[float("nan")]]).write(tmp_path)


def test_tables_of_a_baseline_have_no_after(outcome):
    base = without_after(outcome)
    made = tracking_tables.tables(base, tracking_tables.pairs(base))
    assert [table.name for table in made] == ["2_category_shift", "4_items"]
    row = dict(zip(made[0].columns, made[0].rows[0], strict=True))
    assert (row["gap_before"], row["gap_after"], row["not_scored"]) == (0.688, None, 1)


def test_items_say_what_was_asked_told_and_drawn(outcome):
    table = tracking_tables.items(tracking_tables.pairs(outcome))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert len(rows) == 20
    assert rows[1]["understanding_before"] == "not scored"
    assert rows[0]["question"] == "What colour is the zor0?"
    changed = [row for row in rows if "→" in row["outcome"]]
    assert changed
    assert all((row["generation_before"], row["generation_after"]) == ("wrong", "right") for row in changed)


def test_the_telling_pictures_come_first_and_some_unchanged_ones_stay(tmp_path):
    outcome = make_outcome(tmp_path, per_category=40)
    pairs = tracking_tables.pairs(outcome)
    chosen = tracking_pictures.selected(outcome, pairs)
    assert len(chosen) == 32
    assert all(pair.flipped_image for pair in chosen[:28])
    assert not any(pair.flipped_image or pair.flipped_text for pair in chosen[28:])
    assert {pair.before.category for pair in chosen[28:]} == set(CATEGORIES)


def test_probes_are_the_same_items_whatever_happened(outcome):
    found = [pair.before.id for pair in tracking_pictures.probes(tracking_tables.pairs(outcome))]
    assert found == [f"{name[:3]}-000" for name in CATEGORIES]
    base = without_after(outcome)
    assert [pair.before.id for pair in tracking_pictures.probes(tracking_tables.pairs(base))] == found


def test_the_pair_stands_in_the_top_half_with_hard_pixels(outcome, folder):
    pair = tracking_tables.pairs(outcome)[0]
    canvas = tracking_pictures.pair_canvas(pair, folder)
    assert canvas.size == (516, 516)
    half = canvas.crop((0, 0, 516, 258))
    left, right = half.getpixel((8 + 118, 118)), half.getpixel((8 + 118 + 236 + 28, 118))
    with Image.open(folder / pair.before.picture) as old, Image.open(folder / pair.after.picture) as new:
        assert (left, right) == (old.getpixel((16, 16)), new.getpixel((16, 16)))
        colours = {color for _, color in tracking_pictures.fit(old, 236).getcolors()}
        assert colours == {color for _, color in old.convert("RGB").getcolors()}


def test_a_picture_that_is_missing_is_not_shown(outcome, folder):
    rows = [outcome.before.rows[0].model_copy(update={"picture": None}), *outcome.before.rows[1:]]
    changed = outcome.model_copy(update={"before": outcome.before.model_copy(update={"rows": rows})})
    pairs = tracking_tables.pairs(changed)
    assert "wor-000" not in {pair.before.id for pair in tracking_pictures.selected(changed, pairs)}
    assert tracking_pictures.pair_canvas(pairs[0], folder).size == (516, 516)


def test_the_archive_holds_every_picture(outcome, folder, tmp_path):
    count = tracking_pictures.archive(outcome, folder, tmp_path / "pictures.zip")
    with zipfile.ZipFile(tmp_path / "pictures.zip") as stream:
        names = stream.namelist()
        assert stream.read(names[0]) == (folder / names[0]).read_bytes()
    assert count == len(names) == 60


def test_the_figure_shows_what_its_data_says(outcome):
    data = gap_shift_data(outcome)
    assert data.labels[:2] == ["overall", "world_knowledge (target)"]
    assert data.before[1] == 0.688
    assert data.shift[1] == pytest.approx(-0.142)
    figure = draw_gap_shift(data, title="a title")
    states, shifts = figure.axes
    assert [text.get_text() for text in states.get_yticklabels()] == data.labels
    drawn = [line.get_xdata()[0] for line in shifts.lines if line.get_marker() == "o"]
    assert drawn == data.shift
    assert gap_shift_data(without_after(outcome)) is None


def test_tags_are_plain_strings_within_the_limit(outcome):
    tags = tracking_values.tags(outcome)
    assert all(isinstance(value, str) and 0 < len(value) <= 8000 for value in tags.values())
    assert json.dumps(tags)
    assert "verdict" not in tracking_values.tags(without_after(outcome))


def test_what_was_measured_while_training_is_named_by_the_intervention(outcome) -> None:
    """One intervention needs no number; of several each keeps its own curve, level and lag."""
    points = [EmergencePoint(step=n, text=n / 4, image=n / 8, gap=0.5) for n in (0, 4)]
    found = Emergence(points=points, crossings={"text": {"50": 2.0}, "image": {"50": 4.0}}, lag={"50": 2.0})
    alone = outcome.model_copy(update={"emergence": found})
    assert tracking_values.curves(alone)["emergence/text"] == [(0, 0.0), (4, 1.0)]
    assert tracking_scalars.scalars(alone)["emergence/lag_50"] == 2.0
    stage = Stage(
        method="lora",
        direction="both",
        facts=["a"],
        gap=outcome.before.gap,
        shift=outcome.shift,
        kept=[{"text": 1.0, "image": 0.5}],
        quality=outcome.quality,
    )
    several = outcome.model_copy(update={"stages": [stage, stage.model_copy(update={"emergence": found})]})
    assert tracking_values.curves(several)["emergence/2/image"] == [(0, 0.0), (4, 0.5)]
    assert tracking_scalars.scalars(several)["emergence/2/crosses_50/image"] == 4.0
    assert not [
        key for key in tracking_values.curves(several) if key.startswith(("emergence/1", "emergence/text"))
    ]


def test_protocols_are_metrics_beside_the_sides_and_a_table_of_what_was_written(outcome) -> None:
    plain, found = tracking_scalars.scalars(outcome), tracking_scalars.scalars(with_protocols(outcome))
    assert {key: value for key, value in found.items() if key not in plain} == {
        "edit/reliability/whole": 0.9,
        "edit/locality/whole": 0.8,
        "edit/over_direct/whole": 0.1,
    }
    assert tracking_tables.reasoned(outcome) is tracking_tables.protocols(outcome) is None
    shares, table = tracking_tables.tables(with_protocols(outcome), [])[-2:]
    assert shares.path == "tables/8_protocols.json"
    _, whole, _ = [dict(zip(shares.columns, row, strict=True)) for row in shares.rows]
    assert (whole["measure"], whole["protocol"], whole["after"]) == ("reliability", "whole", 0.9)
    assert (whole["over_direct"], whole["over_direct_low"], whole["over_direct_high"]) == (0.1, 0.05, 0.15)
    assert shares.rows[0][-3:] == [None, None, None], "drawing directly is not compared with itself"
    assert table.path == "tables/9_drawn_from_text.json"
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["state"], row["written"], row["verdict_direct"], row["verdict_whole"]) for row in rows] == [
        ("before", "it is red", "wrong", "wrong"),
        ("after", "it is blue", "wrong", "right"),
    ]
    assert rows[1]["prompt_direct"] == "draw zor1" and rows[1]["prompt_whole"] == "it is blue"


def test_pictures_drawn_from_text_are_in_the_archive(outcome, folder, tmp_path) -> None:
    row = with_protocols(outcome).reasoned[0]
    Image.new("RGB", (2, 2)).save(folder / "other.png")
    drawn = {"whole": row.drawn["whole"].model_copy(update={"picture": "other.png"})}
    more = outcome.model_copy(update={"reasoned": [row.model_copy(update={"drawn": drawn})]})
    assert tracking_pictures.archive(more, folder, tmp_path / "pictures.zip") == 61
