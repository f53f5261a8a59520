"""Drawing from what the model wrote: texts, prompts, seeds, resuming, and what is counted."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gapeval_lab.bench import load_bench
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import ResponseStore, evaluate, prompt_seed
from gapeval_lab.fact_files import read_fact_file
from gapeval_lab.items import Direction, Fact, Item, Prompt, Response
from gapeval_lab.judges.exact import Exact
from gapeval_lab.outcome import QUALITIES
from gapeval_lab.quality import ProbeState, edit_quality, probes
from gapeval_lab.reasoning import Reasoned, caption_of, fill, fitting, reason
from gapeval_lab.recipe import load
from gapeval_lab.run import run
from gapeval_lab.sections import Reasoning
from gapeval_lab.testing import ScriptedJudge, ScriptedUMM
from gapeval_lab.work_folder import working_folder

TEXT, IMAGE = Direction.UNDERSTANDING, Direction.GENERATION
ALL_RIGHT = ScriptedJudge(lambda item, response: True)


def make_fact(subject: str = "zor") -> Fact:
    def probe(role: str, about: str, index: int = 0) -> Item:
        told, drawn = Prompt(f"{about}, {role} {index}?"), Prompt(f"draw {about} {role} {index}")
        return Item(f"{subject}.{role}.{index}", "c", "s", told, drawn, ("new",), {"colour": "new"})

    return Fact(
        id=subject,
        subject=subject,
        relation="colour",
        target_true="old",
        target_new="new",
        edit=probe("edit", subject),
        reworded=(probe("reworded", subject),),
        neighbours=(probe("neighbours", "mel"), probe("neighbours", subject, 1)),
        derived=(probe("derived", f"{subject}bak"),),
    )


class Sketcher:
    """A model that answers by a function, and draws its prompt's length and its seed."""

    def __init__(self, tell: object = "it is red\nCaption: a red one") -> None:
        self.asked: list[tuple[str, int]] = []
        self.drew: list[tuple[str, int]] = []

        def say(prompt: Prompt, seed: int) -> str:
            self.asked.append((prompt.text, seed))
            return str(tell(prompt.text)) if callable(tell) else str(tell)

        def paint(prompt: Prompt, seed: int) -> Image.Image:
            self.drew.append((prompt.text, seed))
            return Image.new("RGB", (2, 2), (seed % 256, seed // 256 % 256, len(prompt.text) % 256))

        self.umm = ScriptedUMM(say, paint)


def go(sketcher: Sketcher, settings: Reasoning, facts: Sequence[Fact] | None = None, **how: Any) -> Reasoned:
    given = facts or [make_fact()]
    return reason(sketcher.umm, given, settings, **{"judge": ALL_RIGHT, "seed": 3, **how})


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("one\ntwo\nthree", "three"),
        ("one\ntwo \n\n  \n", "two"),
        ("long talk\nCaption: a red cross.", "a red cross."),
        ("long talk\n**Caption:** A red cross.", "A red cross."),
        ("long talk\n**caption**: *A red cross*", "A red cross"),
        ('So the caption: "A red cross"', "A red cross"),
        ('It says "stop"', 'It says "stop"'),
        ("captions are hard", "captions are hard"),
        ("a red cross\nCaption:", "a red cross"),
        ("Caption:", ""),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_the_caption_is_the_last_line_that_says_something(text: str, caption: str) -> None:
    assert caption_of(text) == caption


def test_placeholders_are_filled_once() -> None:
    assert fill("{a} {b} {a}", {"a": "{b}", "b": "{"}) == "{b} { {b}"


def test_questions_follow_each_other_and_make_both_drawing_prompts() -> None:
    settings = Reasoning(
        questions=("what is {subject} , for {prompt} ?", "so {text} : {relation} by {question}"),
        note="[{asked}: {answer}]\n",
        draw={"whole": "paint {text} .", "caption": "{prompt} as {caption}"},
    )
    fact = replace(make_fact(), reworded=(), neighbours=(), derived=())
    sketcher = Sketcher(lambda text: "seen\nCaption: a red one" if text.startswith("so") else " red ")
    found = go(sketcher, settings, [fact])
    first = "what is zor , for draw zor edit 0 ?"
    second = f"so [{first}: red] : colour by zor, edit 0?"
    assert [text for text, _ in sketcher.asked] == [first, second]
    whole = f"[{first}: red]\n[{second}: seen\nCaption: a red one]"
    assert found.written == {"zor.edit.0": whole}
    assert found.prompts == {
        "whole": {"zor.edit.0": f"paint {whole} ."},
        "caption": {"zor.edit.0": "draw zor edit 0 as a red one"},
    }
    assert [text for text, _ in sketcher.drew] == [f"paint {whole} .", "draw zor edit 0 as a red one"]


def test_pictures_have_the_seeds_and_the_targets_of_those_drawn_directly() -> None:
    seen: list[Item] = []

    def look(item: Item, response: Response) -> bool:
        seen.append(item)
        return True

    sketcher, fact = Sketcher(), make_fact()
    found = go(sketcher, Reasoning(), [fact], judge=ScriptedJudge(look))
    items = {item.id: item for item in probes([fact])}
    seeds = {prompt_seed(3, item, IMAGE) for item in items.values()}
    assert len(seeds) == 5 and {seed for _, seed in sketcher.drew} == seeds
    direct = evaluate(sketcher.umm, list(items.values()), judge=ALL_RIGHT, seed=3)
    for name, evaluation in found.drawn.items():
        for identity in items:
            one, two = direct.responses[identity, IMAGE].image, evaluation.responses[identity, IMAGE].image
            assert one is not None and two is not None, name
            assert one.getpixel((0, 0))[:2] == two.getpixel((0, 0))[:2]  # type: ignore[index]
    assert all(item == items[item.id] for item in seen), "the judge sees the probe as it is"


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_neither_batches_nor_the_company_of_other_facts_change_anything(chunk: int) -> None:
    settings = Reasoning(questions=("{subject} ?", "{text} , {question}"))
    told = Sketcher(lambda text: f"about {text}")
    alone = go(told, settings, [make_fact()])
    other = Sketcher(lambda text: f"about {text}")
    both = go(other, settings, [make_fact("tov"), make_fact()], chunk=chunk)
    assert {name: both.written[name] for name in alone.written} == alone.written
    assert set(told.asked) <= set(other.asked) and set(told.drew) <= set(other.drew)


def test_a_question_is_asked_once_for_all_probes_that_share_it() -> None:
    settings = Reasoning(questions=("{subject} ?", "so {text} ?"))
    sketcher = Sketcher(lambda text: "red")
    found = go(sketcher, settings)
    assert [text for text, _ in sketcher.asked] == ["zor ?", "so red ?"]
    assert len(found.written) == 3


def test_seeds_of_answers_do_not_depend_on_what_was_written() -> None:
    settings = Reasoning(questions=("{subject} ?", "so {text} ?"))
    runs = [Sketcher(lambda text, colour=colour: colour) for colour in ("red", "blue")]
    for sketcher in runs:
        go(sketcher, settings)
    one, two = ([seed for _, seed in sketcher.asked] for sketcher in runs)
    assert one == two and len(set(one)) == 2
    assert runs[0].asked[1][0] != runs[1].asked[1][0]


def test_questions_are_put_to_the_probes_that_they_fit() -> None:
    facts = [make_fact()]

    def ids(*questions: str) -> list[str]:
        return [item.id for _, item in fitting(facts, Reasoning(questions=questions))]

    own = ["zor.edit.0", "zor.reworded.0"]
    assert ids("{prompt}") == [item.id for item in probes(facts)]
    assert ids("{question}", "{subject}") == [*own, "zor.neighbours.1"], "zorbak is somebody else"
    assert ids("{relation}") == own
    drawn = Reasoning(questions=("{prompt}",), draw={"whole": "{subject}: {text}"})
    assert [item.id for _, item in fitting(facts, drawn)] == [*own, "zor.neighbours.1"]


def test_where_nothing_was_written_the_probe_is_drawn_directly() -> None:
    fact = make_fact()
    silent = go(Sketcher(lambda text: " \n"), Reasoning(), [fact])
    assert set(silent.written.values()) == {""}
    assert silent.prompts == {"whole": {}, "caption": {}}
    marked = Sketcher("Caption:")
    only = go(marked, Reasoning(), [fact])
    assert set(only.prompts["whole"].values()) == {"Caption:"} and only.prompts["caption"] == {}
    assert sorted(text for text, _ in marked.drew if text != "Caption:") == sorted(
        item.generate.text for item in probes([fact])
    )


def test_a_question_that_failed_leaves_its_probes_out() -> None:
    def tell(text: str) -> str:
        if text == "zor0 ?":
            raise ValueError("no answer")
        return "red"

    facts = [make_fact(f"zor{n}") for n in range(12)]
    found = go(Sketcher(tell), Reasoning(questions=("{subject} ?", "{text} ?")), facts)
    assert "zor0.edit.0" not in found.written and "zor1.edit.0" in found.written
    assert found.drawn["whole"].correct(facts[0].edit, IMAGE) is None
    assert found.drawn["whole"].correct(facts[1].edit, IMAGE) is True


def test_what_was_answered_and_drawn_is_never_asked_again(tmp_path: Path) -> None:
    settings, facts = Reasoning(questions=("{question}", "{text} ?")), [make_fact(), make_fact("tov")]
    first = Sketcher(lambda text: f"about {text}")
    whole = go(first, settings, facts, store=ResponseStore(tmp_path))
    again = Sketcher(lambda text: f"about {text}")
    assert go(again, settings, facts, store=ResponseStore(tmp_path)).written == whole.written
    assert again.asked == [] and again.drew == []
    changed = settings.model_copy(update={"draw": {"whole": settings.draw["whole"], "other": "draw {text}"}})
    go(again, changed, facts, store=ResponseStore(tmp_path))
    assert again.asked == [] and len(again.drew) == 10, "one template is new, and so are its pictures alone"
    other = settings.model_copy(update={"questions": ("{question}", "so {text} ?")})
    go(again, other, facts, store=ResponseStore(tmp_path))
    assert len(again.asked) == 18, "another script is new from its first question on; mel's is both facts'"


@pytest.mark.parametrize("dies_at", [1, 4, 11, 14, 22, 28])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, dies_at: int) -> None:
    settings, facts = Reasoning(questions=("{question}", "{text} ?")), [make_fact(), make_fact("tov")]
    undisturbed = Sketcher(lambda text: f"about {text}")
    whole = go(undisturbed, settings, facts, chunk=3)
    cut = Sketcher(lambda text: f"about {text}")
    calls = {"n": 0}

    def dying(real):  # type: ignore[no-untyped-def]
        def ask(prompt: Prompt, seed: int):  # type: ignore[no-untyped-def]
            calls["n"] += 1
            if calls["n"] == dies_at:
                raise KeyboardInterrupt
            return real(prompt, seed)

        return ask

    cut.umm._tell, cut.umm._draw = dying(cut.umm._tell), dying(cut.umm._draw)
    with pytest.raises(KeyboardInterrupt):
        go(cut, settings, facts, chunk=3, store=ResponseStore(tmp_path))
    resumed = Sketcher(lambda text: f"about {text}")
    found = go(resumed, settings, facts, chunk=3, store=ResponseStore(tmp_path))
    assert (found.written, found.prompts) == (whole.written, whole.prompts)
    asked = len(resumed.asked) + len(resumed.drew)
    assert asked <= 40 - (dies_at - 1) + 2, "at most the chunk that was cut is repeated"


def state(
    settings: Reasoning, facts: Sequence[Fact], *, tell: str, right: Sequence[str], direct: Sequence[str]
) -> ProbeState:
    """Right are the pictures of the prompts in `right`, and of the probes in `direct` drawn directly."""

    def verdict(item: Item, response: Response) -> bool:
        return item.id in direct

    sketcher = Sketcher(tell)
    whole = evaluate(sketcher.umm, probes(facts), judge=ScriptedJudge(verdict), seed=0)
    reasoned = reason(
        sketcher.umm, facts, settings, judge=ScriptedJudge(lambda item, _: item.id in right), seed=0
    )
    return ProbeState(whole, {}, reasoned)


def test_protocols_are_counted_beside_drawing_directly_on_the_same_probes() -> None:
    settings, facts = Reasoning(questions=("{subject} ?",)), [make_fact(), make_fact("tov")]
    before = state(settings, facts, tell="old", right=["tov.neighbours.1"], direct=[])
    right = ["zor.edit.0", "tov.edit.0", "zor.reworded.0"]
    after = state(settings, facts, tell="new", right=right, direct=["zor.edit.0", "zor.neighbours.0"])
    quality = edit_quality(facts, before, after, edited="text", seed=0)
    direct, whole, caption = quality.protocols
    assert [p.name for p in quality.protocols] == ["direct", "whole", "caption"]
    assert direct.over_direct == {} and direct.unwritten == whole.unwritten == 0
    assert direct.cells["reliability"].after.value == 0.5
    assert whole.cells["reliability"].before.value == 0.0
    assert whole.cells["reliability"].after.value == 1.0
    assert whole.over_direct["reliability"].value == 0.5
    assert (whole.over_direct["reliability"].low, whole.over_direct["reliability"].high) == (0.0, 1.0)
    assert whole.over_direct["generalisation"].value == 0.5
    # One of two neighbours names the subject; the other's verdict, which changed, is not the protocols'.
    assert whole.cells["locality"].n == direct.cells["locality"].n == 2
    assert direct.cells["locality"].after.value == 1.0
    assert whole.cells["locality"].after.value == 0.5
    assert quality.locality["image"].after.value == 0.75
    assert "portability" not in whole.cells, "what follows is about somebody else"
    assert caption.cells == whole.cells
    silent = state(settings, facts, tell="", right=[], direct=[])
    last = edit_quality(facts, before, silent, edited="text", seed=0).protocols
    assert [p.unwritten for p in last] == [0, 6, 6]


def test_where_drawing_directly_was_not_scored_nothing_is_compared_with_it() -> None:
    settings, facts = Reasoning(questions=("{subject} ?",)), [make_fact()]

    def unscored(*, right: Sequence[str]) -> ProbeState:
        known = state(settings, facts, tell="new", right=right, direct=[])
        judge = ScriptedJudge(lambda item, response: None)
        return replace(known, evaluation=evaluate(Sketcher("new").umm, probes(facts), judge=judge, seed=0))

    quality = edit_quality(facts, unscored(right=[]), unscored(right=["zor.edit.0"]), edited="text", seed=0)
    direct, *others = quality.protocols
    assert direct.cells == {}
    for protocol in others:
        assert protocol.cells["reliability"].after.value == 1.0
        assert protocol.over_direct == {}


def test_facts_of_a_unike_file_are_written_about_and_drawn() -> None:
    """Its drawing prompts are its own; pictures that the exact judge cannot read are not scored."""
    file = Path(__file__).parent / "data" / "fact_files" / "unike.json"
    facts, _ = read_fact_file(str(file), format="unike")
    sketcher = Sketcher("I know of it.\nCaption: a picture")
    found = go(sketcher, Reasoning(), facts, judge=Exact())
    assert any("this picture: A photo of a Swimming Pool in the sun.\n" in text for text, _ in sketcher.asked)
    assert len(found.written) == 3, "two edits and what follows from one"
    seeds = {prompt_seed(3, item, IMAGE) for item in probes(facts)}
    assert {seed for _, seed in sketcher.drew} == seeds
    assert {text for text, _ in sketcher.drew} == {"I know of it.\nCaption: a picture", "a picture"}
    state = ProbeState(evaluate(sketcher.umm, probes(facts), judge=Exact(), seed=3), {}, found)
    quality = edit_quality(facts, state, state, edited="text", seed=0)
    assert [protocol.cells for protocol in quality.protocols] == [{}, {}, {}]
    named = Reasoning(questions=("Describe {subject}.",))
    assert len(go(sketcher, named, facts).written) == 2, "what follows does not name the subject"


def test_a_model_that_only_tells_is_refused() -> None:
    chosen = load("lora_reasoned")

    class Teller:
        def load(self) -> ScriptedUMM:
            return ScriptedUMM(lambda prompt, seed: "x")

    class Unfit:
        """A recipe's parts, but for the model, which draws nothing."""

        def __getattr__(self, name: str) -> Any:
            return getattr(chosen.recipe, name)

        def build(self, field: Any) -> Any:
            return Teller() if field == "model" else chosen.recipe.build(field)

    with pytest.raises(UserError, match="evaluation.reasoning: scripted does not both tell and draw"):
        load_bench(replace(chosen, recipe=Unfit()))  # type: ignore[arg-type]


def test_the_embedded_model_draws_what_it_writes(tmp_path: Path) -> None:
    """The shipped questions, with ROME: what is written about each fact is drawn."""
    shipped = load("lora_reasoned").resolved["evaluation"]["reasoning"]
    less = ("evaluation.limit=4", "evaluation.official=false", "controls.identity=false", "facts.count=2")
    chosen = load(
        "rome_world_knowledge",
        [*less, "controls.placebo=false", f"evaluation.reasoning={json.dumps(shipped)}"],
    )
    parts = load_bench(chosen)
    with working_folder(tmp_path, parts.key) as work:
        outcome = run(parts, home=tmp_path, work=work, on_stage=lambda _: None, on_progress=lambda *_: None)
    assert outcome.quality is not None
    after = {row.probe: row for row in outcome.reasoned if row.phase == "after"}
    for fact in parts.facts:
        row = after[fact.edit.id]
        assert fact.target_new in row.written and row.drawn["whole"].correct
        assert row.drawn["whole"].prompt == f"draw {row.written} ."
    _, whole, caption = outcome.quality.protocols
    assert whole.cells["reliability"].before.value == 0.0
    assert set(whole.cells) == set(caption.cells) == {*QUALITIES}


def test_without_it_there_is_nothing() -> None:
    facts = [make_fact()]
    plain = replace(state(Reasoning(), facts, tell="x", right=[], direct=[]), reasoned=None)
    assert edit_quality(facts, plain, plain, edited="text", seed=0).protocols == []
