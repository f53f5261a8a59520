"""An Outcome as names, tags, params, curves and a note. Plain values: knows nothing of MLflow's client.

The numbers without steps stand in `tracking_scalars`.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from gapeval_lab.gap.records import Estimate
from gapeval_lab.outcome import QUALITIES, EditQuality, Outcome, QualityCell

PARAM_LIMIT = 6000  # MLflow cuts longer values silently
TAG_LIMIT = 8000
METHOD_COLORS = {
    "lora": "#1f5fd0",
    "rome": "#d9770a",
    "memit": "#b3202c",
    "alphaedit": "#7a3be0",
    "finetune": "#0f8a5f",
    "easyedit": "#0b7d91",
}
OTHER_COLORS = ("#a8326e", "#5b6b00", "#8a4b1c", "#30307f", "#3d8fd6")
BASELINE_COLOR = "#8a8f98"


def clean_key(text: str) -> str:
    """The text as a metric, param or tag key: other characters than MLflow's become '_'."""
    return re.sub(r"[^\w\-./: ]", "_", text, flags=re.ASCII).strip("/")[:250]


def method(recipe: Mapping[str, Any]) -> str:
    """The intervention's name, 'none' where the recipe has no intervention."""
    node = recipe.get("intervention")
    return str(node.get("use", "none")) if isinstance(node, Mapping) else "none"


def short_target(categories: Sequence[str]) -> str:
    """'world_knowledge' is 'wk', 'reasoning' is 'rea'; several are joined; none is 'all'."""

    def short(name: str) -> str:
        words = [word for word in re.split(r"[\W_]+", name) if word]
        return "".join(word[0] for word in words) if len(words) > 1 else name[:3]

    return "+".join(short(name) for name in categories) or "all"


def main_knob(recipe: Mapping[str, Any]) -> str:
    """The setting that people tell runs of one method apart by: 'r16', 'L2', 'L2-4', 'x0.5', or nothing."""
    node = recipe.get("intervention")
    if not isinstance(node, Mapping):
        return ""
    if node.get("use") == "saved":
        return f"x{node.get('scale', 1.0):g}"
    if isinstance(node.get("rank"), int):
        return f"r{node['rank']}"
    if isinstance(node.get("layer"), int):
        return f"L{node['layer']}"
    layers = node.get("layers")
    if isinstance(layers, list | tuple) and layers and all(isinstance(layer, int) for layer in layers):
        return f"L{layers[0]}" if len(layers) == 1 else f"L{min(layers)}-{max(layers)}"
    return ""


def run_name(recipe: Mapping[str, Any], *, targets: Sequence[str], direction: str) -> str:
    """The run's name: `rome-wk-text-L2`; a recipe without intervention is `baseline`.

    Several interventions are all named, and none of their knobs: `lora+rome-wk-both`.
    """
    if method(recipe) == "none":
        return "baseline"
    later = [method(step) for step in recipe.get("then") or ()]
    methods = "+".join([method(recipe), *later])
    parts = (methods, short_target(targets), direction, "" if later else main_knob(recipe))
    return "-".join(part for part in parts if part)


def verdict(shift: Estimate) -> str:
    """What the interval of the gap's shift says. A gap that shrank has a negative shift."""
    if shift.high < 0:
        return "gap closed"
    return "gap widened" if shift.low > 0 else "no change"


def color(outcome: Outcome) -> str | None:
    """The run's colour everywhere in the UI: by method; None for trials, which come in hundreds."""
    if outcome.kind == "trial":
        return None
    name = method(outcome.recipe)
    if outcome.kind == "baseline" or name == "none":
        return BASELINE_COLOR
    return METHOD_COLORS.get(name) or OTHER_COLORS[sum(name.encode()) % len(OTHER_COLORS)]


def first_tags(
    recipe: Mapping[str, Any], *, kind: str, targets: Sequence[str], direction: str, umm: str
) -> dict[str, str]:
    """Tags that are known before a run has done anything, so that one that fails is found by them, too."""
    found = {
        "method": method(recipe),
        "target": ", ".join(targets),
        "direction": "" if kind == "baseline" else direction,
        "umm": umm,
        "recipe": str(recipe.get("name", "")),
        "kind": kind,
    }
    return {key: value[:TAG_LIMIT] for key, value in found.items() if value}


def tags(outcome: Outcome) -> dict[str, str]:
    """Tags that people read (method, target, ...) and, under `gapeval.`, those that the machine reads."""
    found = {
        **first_tags(
            outcome.recipe,
            kind=outcome.kind,
            targets=outcome.target_categories,
            direction=outcome.direction,
            umm=outcome.umm,
        ),
        "verdict": verdict(outcome.shift.gap) if outcome.shift and outcome.shift.gap else "",
        "mlflow.runColor": color(outcome) or "",
        "mlflow.source.git.commit": outcome.git_revision or "",
        "gapeval.estimators": (outcome.audit.said if outcome.audit else "") or "",
        "gapeval.outcome": outcome.run_id,
        "gapeval.recipe_hash": outcome.recipe_hash,
        "gapeval.reverted": "" if outcome.reverted is None else str(outcome.reverted).lower(),
    }
    return {key: value[:TAG_LIMIT] for key, value in found.items() if value}


def flatten(node: Any, path: str = "") -> dict[str, str]:
    """Nested settings as dotted paths; lists stay whole, as JSON."""
    if isinstance(node, Mapping) and (node or not path):
        return {
            key: value
            for name, child in node.items()
            for key, value in flatten(child, f"{path}.{name}" if path else str(name)).items()
        }
    return {clean_key(path): node if isinstance(node, str) else json.dumps(node, default=str)}


def params(outcome: Outcome) -> dict[str, str]:
    """The resolved recipe under its dotted paths, then what else the numbers depend on."""
    found = {
        # First: the leaderboard and the parallel coordinates need them as params.
        "method": method(outcome.recipe),
        "target": ", ".join(outcome.target_categories),
        "direction": outcome.direction,
        "umm": outcome.umm,
        **flatten(outcome.recipe),
        "seed": str(outcome.seed),
        "recipe_hash": outcome.recipe_hash,
        "data_hash": outcome.data_hash,
        "facts_hash": outcome.facts_hash or "",
        "weights_fingerprint": outcome.weights_fingerprint,
        "delta_address": outcome.delta_address or "",
        "git_revision": outcome.git_revision or "",
        "code_hash": outcome.code_hash or "",
        "overrides": " ".join(outcome.overrides),
        **{clean_key(f"machine.{name}"): value for name, value in outcome.machine.items()},
        **{clean_key(f"versions.{name}"): version for name, version in outcome.versions.items()},
    }
    if outcome.kind == "baseline":
        found.pop("direction")
    return shortened(found)


def shortened(found: Mapping[str, str]) -> dict[str, str]:
    """Params that are not empty, those cut that MLflow would cut without a word."""
    marker = " [cut; whole in recipe/resolved.yaml]"
    return {
        key: value if len(value) <= PARAM_LIMIT else value[: PARAM_LIMIT - len(marker)] + marker
        for key, value in found.items()
        if value
    }


def curves(outcome: Outcome) -> dict[str, list[tuple[int, float]]]:
    """Metrics with steps: the state at step 0 (before) and 1 (after), and what the method logged.

    What was measured while a method trained is `emergence/...`, by updates: the facts told and drawn,
    and the Gap Score of the curve's own subset, which is no part of `gap/...`. Of several interventions
    each has its number in the name: `emergence/2/text`.
    Curves that a method logs per fact ('loss/fact-3') become one, their mean at each step
    ('train/loss'); the single ones stand in outcome.json.
    """
    states = [outcome.before, *([outcome.after] if outcome.after else [])]
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, state in enumerate(states):
        gap = state.gap
        means = {"gap": gap.gap, "understanding": gap.understanding, "generation": gap.generation}
        for what, mean in means.items():
            if mean is not None:
                found[f"{what}/overall"].append((step, mean.value))
        for name, category in gap.categories.items():
            found[f"gap/{name}"].append((step, category.gap.value))
    for family, emergence in outcome.trainings().items():
        for point in emergence.points:
            measured = {
                "text": point.text,
                "image": point.image,
                "gap": point.gap,
                "understanding": point.understanding,
                "generation": point.generation,
                **{f"gap/{name}": gap for name, gap in point.categories.items()},
                **{f"reliability/{side}": share for side, share in point.reliability.items()},
                **{f"locality/{side}": share for side, share in point.locality.items()},
            }
            for name, share in measured.items():
                if share is not None:
                    found[f"{family}/{name}"].append((point.step, share))
    families: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, points in outcome.curves.items():
        family = name if name.startswith("train/") else f"train/{name.split('/')[0]}"
        if family != name and family in outcome.curves:
            continue  # the method has logged the whole itself
        for step, value in points:
            families[family][step].append(value)
    for family, steps in families.items():
        found[family] = [(step, fmean(values)) for step, values in sorted(steps.items())]
    return {
        clean_key(key): [(step, round(value, 4)) for step, value in points if math.isfinite(value)]
        for key, points in found.items()
    }


def signed(value: float) -> str:
    """Three decimals with a sign, a real minus, and no '-0.000'."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", "−")


def interval(estimate: Estimate) -> str:
    """'−0.029 [−0.041, −0.017]'."""
    return f"{signed(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def headline(outcome: Outcome) -> str:
    """The result in one line: the verdict, both gap scores, the shift with its interval."""
    before = outcome.before.gap
    if before.gap is None or before.null_gap is None:
        return _one_sided(outcome)
    if not (outcome.after and outcome.shift and outcome.after.gap.gap and outcome.shift.gap):
        low, high = before.gap.low, before.gap.high
        return f"Gap {before.gap.value:.3f} [{low:.3f}, {high:.3f}]; by chance alone {before.null_gap:.3f}"
    after = outcome.after.gap.gap.value
    words = verdict(outcome.shift.gap).capitalize()
    return f"{words}: {before.gap.value:.3f} → {after:.3f} ({interval(outcome.shift.gap)})"


def _one_sided(outcome: Outcome) -> str:
    """What can be said where no item is scored in both directions."""
    state = (outcome.after or outcome.before).gap
    told = []
    for side in ("understanding", "generation"):
        share = getattr(state, side)
        moved = getattr(outcome.shift, side) if outcome.shift else None
        if share is not None:
            said = f", shift {interval(moved)}" if moved is not None else ""
            told.append(f"{side} {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]{said}")
    return f"No gap, nothing is scored in both directions; {'; '.join(told)}"


def note(outcome: Outcome, *, links: Mapping[str, str]) -> str:
    """The run's description: the headline in bold, then what was done, then tables. Markdown.

    `links` are words -> address.
    """
    from gapeval_lab.report_audit import estimators_note  # which prints, too

    lines = [f"**{headline(outcome)}**", ""]
    if warning := estimators_note(outcome):
        lines += [warning, ""]
    lines.append(_what(outcome))
    lines[-1] += "".join(f" [{words}]({address})." for words, address in links.items())
    if outcome.reverted is False:
        lines += ["", "**The weights were NOT restored after this run.**"]
    lines += ["", *_category_lines(outcome)]
    if outcome.quality:
        lines += ["", *_quality_lines(outcome.quality)]
    controls = (("placebo", outcome.placebo_shift), ("identity", outcome.identity_shift))
    said = [f"{name} {interval(shift.gap)}" for name, shift in controls if shift and shift.gap]
    if said:
        lines += ["", f"Controls, shift of the gap: {'; '.join(said)}."]
    text = "\n".join(lines)
    return text if len(text) <= TAG_LIMIT else text[: TAG_LIMIT - 2] + "\n…"


def _what(outcome: Outcome) -> str:
    gap = outcome.before.gap
    unscored = sum(c.cells.unscored for c in gap.categories.values()) + sum(gap.left_out.values())
    unscored -= sum(one.n for one in gap.one_sided.values())
    items = f"{len(outcome.before.rows)} items" + (f" ({unscored} not scored)" if unscored else "")
    if outcome.kind == "baseline":
        return f"`{outcome.umm}` as it is, {items}."
    target = ", ".join(outcome.target_categories) or "no category"
    return (
        f"{method(outcome.recipe).upper()} on `{outcome.umm}`, {len(outcome.facts)} facts, "
        f"{outcome.direction} side, target {target}; {items}."
    )


def _category_lines(outcome: Outcome) -> list[str]:
    after, shift = outcome.after, outcome.shift
    if not (after and shift):
        head = ["| category | gap | told | drawn | items |", "|---|---|---|---|---|"]
        return (
            head
            + [
                f"| {name} | {c.gap.value:.3f} | {c.understanding.value:.2f} | {c.generation.value:.2f} "
                f"| {c.cells.n} |"
                for name, c in outcome.before.gap.categories.items()
            ]
            + [
                f"| {name} | n/a | {_side_cells(one.direction, f'{one.accuracy.value:.2f}')} | {one.n} |"
                for name, one in outcome.before.gap.one_sided.items()
            ]
        )
    head = ["| category | gap before | after | shift | told | drawn |", "|---|---|---|---|---|---|"]
    for name, moved in shift.categories.items():
        old, new = outcome.before.gap.categories[name], after.gap.categories[name]
        mark = " (target)" if name in outcome.target_categories else ""
        head.append(
            f"| {name}{mark} | {old.gap.value:.3f} | {new.gap.value:.3f} | {interval(moved.gap)} "
            f"| {signed(moved.understanding.shift.value)} | {signed(moved.generation.shift.value)} |"
        )
    for name, one in shift.one_sided.items():
        cells = _side_cells(one.direction, signed(one.accuracy.shift.value))
        head.append(f"| {name} | n/a | n/a | n/a | {cells} |")
    return head


def _side_cells(direction: str, value: str) -> str:
    """A value in the column of its side, of told and drawn."""
    return f"{value} | n/a" if direction == "understanding" else f"n/a | {value}"


def _quality_lines(quality: EditQuality) -> list[str]:
    lines = ["| edit quality | text | image |", "|---|---|---|"]
    for name in QUALITIES:
        cells: Mapping[str, QualityCell] = getattr(quality, name)
        shown = [
            f"{cells[side].before.value:.2f} → {cells[side].after.value:.2f}" if side in cells else "n/a"
            for side in ("text", "image")
        ]
        lines.append(f"| {name} | {shown[0]} | {shown[1]} |")
    ratio = f"{interval(quality.transfer_ratio)}" if quality.transfer_ratio else "undefined"
    tail = f" ({quality.transfer_note})" if quality.transfer_note else ""
    return [*lines, "", f"Transfer to the other direction: {ratio}{tail}."]
