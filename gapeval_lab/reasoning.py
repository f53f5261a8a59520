"""Drawing from what the model wrote: asked in text first, its own words make the drawing prompt.

A protocol gives a probe another drawing prompt and leaves all else: the id, so that a picture has the
random numbers of the one that is drawn directly, and the target that the judge holds it against.
Knows nothing of before and after; what it means for facts is counted in quality.py.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gapeval_lab.evaluate import Evaluation, Progress, ResponseStore, judged, respond
from gapeval_lab.interfaces import UMM, Judge
from gapeval_lab.items import Direction, Fact, Item, Prompt
from gapeval_lab.sections import PLACEHOLDER, Reasoning

UND, GEN = Direction.UNDERSTANDING, Direction.GENERATION
_MARK = re.compile(r"^.*\bcaption\W*:", re.IGNORECASE)
_QUOTES = ('""', "''", "“”")


@dataclass(frozen=True)
class Reasoned:
    """What one state of the model wrote about probes, and drew from it.

    Attributes:
        written: probe id -> the whole text; empty where the model had nothing to say. Probes that the
            questions do not fit, or whose question failed, are missing.
        prompts: protocol -> probe id -> the drawing prompt; missing where what it is made of is empty,
            so that the probe's own prompt was drawn.
        drawn: protocol -> the pictures and their verdicts, under the probes' ids.
    """

    written: Mapping[str, str]
    prompts: Mapping[str, Mapping[str, str]]
    drawn: Mapping[str, Evaluation]


def fitting(facts: Sequence[Fact], settings: Reasoning) -> list[tuple[Fact, Item]]:
    """The probes that the questions fit, with their facts, in order.

    {subject} is the fact's: its neighbours and what follows from it may be about somebody else, and are
    left out unless they name it. {relation} is that of the edited wordings alone.
    """
    chosen = []
    for fact in facts:
        named = re.compile(rf"(?<!\w){re.escape(fact.subject)}(?!\w)")
        chosen += [(fact, item) for item in (fact.edit, *fact.reworded)]
        if settings.uses("relation"):
            continue
        for item in (*fact.neighbours, *fact.derived):
            about = f"{item.understand.text}\n{item.generate.text}"
            if not settings.uses("subject") or named.search(about):
                chosen.append((fact, item))
    return chosen


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders replaced, once: braces in a value are text."""
    return PLACEHOLDER.sub(lambda found: values[found[1]], template)


def caption_of(text: str) -> str:
    """The last line that says something, without "Caption:" before it, marks or quotes around it."""
    for line in reversed(text.splitlines()):
        caption = _MARK.sub("", line).strip(" \t*_#")
        if caption[:1] + caption[-1:] in _QUOTES:
            caption = caption[1:-1].strip()
        if caption:
            return caption
    return ""


def reason(
    umm: UMM,
    facts: Sequence[Fact],
    settings: Reasoning,
    *,
    judge: Judge,
    seed: int,
    store: ResponseStore | None = None,
    chunk: int = 96,
    progress: Progress | None = None,
) -> Reasoned:
    """Let the model write about every probe that the questions fit, and draw from that.

    Args:
        umm: asked as it is now; it tells and draws.
        facts: whose probes are drawn.
        settings: questions and drawing prompts.
        judge: of the pictures, against the probes' own targets.
        seed, store, chunk, progress: see `respond`.
    """
    chosen = fitting(facts, settings)
    answers = _write(umm, chosen, settings, seed=seed, store=store, chunk=chunk, progress=progress)
    known = [(fact, item) for fact, item in chosen if item.id in answers]
    written = {item.id: answers[item.id].text for _, item in known}
    prompts: dict[str, dict[str, str]] = {}
    drawn = {}
    for name, template in settings.draw.items():
        prompts[name] = {
            item.id: words
            for fact, item in known
            if (words := _drawing_prompt(template, answers[item.id], fact, item)) is not None
        }
        asked = [
            replace(item, generate=Prompt(prompts[name][item.id], item.generate.pictures))
            if item.id in prompts[name]
            else item
            for _, item in known
        ]
        pictures = respond(umm, asked, {GEN}, seed=seed, store=store, chunk=chunk, progress=progress)
        drawn[name] = judged([item for _, item in known], pictures, judge)
    return Reasoned(written, prompts, drawn)


@dataclass
class _Script:
    """The questions to one or several probes, which share them word for word, and what was written so far.

    Attributes:
        values: of the placeholders.
        text: the notes; `said`: the answers alone.
    """

    values: Mapping[str, str]
    text: str = ""
    said: str = ""


def _write(
    umm: UMM,
    chosen: Sequence[tuple[Fact, Item]],
    settings: Reasoning,
    *,
    seed: int,
    store: ResponseStore | None,
    chunk: int,
    progress: Progress | None,
) -> dict[str, _Script]:
    """Probe id -> what was written; a script with a question that failed is left out."""
    names = {item.id: _name(settings, fact, item) for fact, item in chosen}
    scripts = {names[item.id]: _Script(_values(fact, item)) for fact, item in chosen}
    for number, question in enumerate(settings.questions):
        asked = {
            name: fill(question, {**script.values, "text": script.text.strip()})
            for name, script in scripts.items()
        }
        items = [
            Item(f"written.{name}.{number}", "", "", Prompt(words), Prompt(""), ())
            for name, words in asked.items()
        ]
        found = respond(umm, items, {UND}, seed=seed, store=store, chunk=chunk, progress=progress)
        for name in asked:
            answer = found[f"written.{name}.{number}", UND].text
            if answer is None:
                del scripts[name]
            elif answer.strip():
                script = scripts[name]
                script.text += fill(settings.note, {"asked": asked[name], "answer": answer.strip()})
                script.said += f"{answer}\n"
    for script in scripts.values():
        script.text = script.text.strip()
    return {identity: scripts[name] for identity, name in names.items() if name in scripts}


def _name(settings: Reasoning, fact: Fact, item: Item) -> str:
    """A hash of the questions with what the model is yet to write left open.

    It makes the seeds of the answers, so these are the same before and after an intervention.
    """
    values = {**_values(fact, item), "text": "\x00"}
    parts = [fill(question, values) for question in settings.questions]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _values(fact: Fact, item: Item) -> dict[str, str]:
    return {
        "subject": fact.subject,
        "relation": fact.relation,
        "question": item.understand.text,
        "prompt": item.generate.text,
    }


def _drawing_prompt(template: str, script: _Script, fact: Fact, item: Item) -> str | None:
    """None where the model wrote nothing that the template holds."""
    made = {"text": script.text, "caption": caption_of(script.said)}
    if not all(made[name] for name in PLACEHOLDER.findall(template) if name in made):
        return None
    return fill(template, {**_values(fact, item), **made})
