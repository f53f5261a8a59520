"""The section of a run's page that says what the run was made of: settings, hashes, versions, time."""

import yaml

from gapeval_lab.pages.numbers import Numbers, joined
from gapeval_lab.pages.parts import Block, Code, Fold, Line, Note, Section, Table, Terms, Words


def record(numbers: Numbers) -> Section:
    """Provenance."""
    outcome = numbers.outcome
    restored = outcome.weights_fingerprint_reverted
    rows: list[tuple[str, Words]] = [
        ("run", outcome.run_id),
        ("started", outcome.started),
        ("recipe", str(outcome.recipe.get("name", ""))),
        ("overrides", ", ".join(outcome.overrides) or "none"),
        ("seed", numbers.count("seed")),
        ("model", outcome.umm),
        ("weights", outcome.weights_fingerprint),
    ]
    if restored is not None:
        rows.append(("weights after the run", restored))
    rows += [
        ("recipe's hash", outcome.recipe_hash),
        ("items' hash", outcome.data_hash),
        ("facts' hash", outcome.facts_hash or "no facts"),
        ("change's hash", outcome.delta_address or "no change"),
        ("git", outcome.git_revision or "unknown"),
        ("versions", ", ".join(f"{name} {version}" for name, version in outcome.versions.items())),
        ("peak memory", joined(numbers.one("peak_memory_gib", write=_two), " GiB")),
    ]
    blocks: list[Block] = []
    if outcome.reverted is False:
        blocks.append(Note("The weights were NOT restored after this run.", "warning"))
    elif outcome.reverted:
        blocks.append(Note("After the run the weights were as before, to the bit."))
    if outcome.merge_error is not None:
        lost = numbers.one("merge_error", write=_percentage, scale=100)
        blocks.append(Note(joined("Rounding to the weights' type lost ", lost, " % of the change."), "quiet"))
    blocks.append(Terms(rows))
    blocks.append(
        Table(
            "Seconds",
            ["seconds"],
            [Line(phase, (numbers.one("seconds", phase, write=_one),)) for phase in outcome.seconds],
            corner="phase",
        )
    )
    if outcome.delta_norms:
        lines = [
            Line(name, (numbers.one("delta_norms", name, write=_four),))
            for name in sorted(outcome.delta_norms)
        ]
        table = Table("Size of the change", ["Frobenius norm"], lines, corner="parameter")
        blocks.append(Fold(f"Size of the change ({len(lines)} parameters)", [table]))
    resolved = yaml.safe_dump(outcome.recipe, sort_keys=False, allow_unicode=True)
    blocks.append(Fold("The recipe with every default", [Code(resolved)]))
    if outcome.recipe_text:
        blocks.append(Fold("The recipe as written", [Code(outcome.recipe_text)]))
    return Section("record", "How it was made", "Record", blocks)


def _one(value: float) -> str:
    return f"{value:.1f}"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _four(value: float) -> str:
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e4 else f"{value:.3e}"


def _percentage(value: float) -> str:
    return f"{100 * value:.3f}"
