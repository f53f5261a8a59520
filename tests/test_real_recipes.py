"""The recipes for real models, each run whole on tiny random checkpoints of its family.

Nothing of a recipe is changed but where things lie and how large they are: weights, data, the judge's
address, the numbers of items, facts and updates.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gapeval_data as data
import huggingface_hub.constants
import pytest
import torch
from endpoint_server import Act, Request, Server, said, serving
from rich.console import Console
from test_realunify import files, write
from tiny_diffusion import stable_diffusion
from tiny_vlm import save_tiny

from gapeval_lab.bench import Bench, load_bench, weights_of
from gapeval_lab.errors import UserError
from gapeval_lab.fact_files import read_fact_file
from gapeval_lab.interventions.easyedit import EasyEdit
from gapeval_lab.models.tiny import JanusShape, build_janus
from gapeval_lab.models.tiny_emu3 import Emu3Shape, build_emu3
from gapeval_lab.outcome import Outcome
from gapeval_lab.recipe import load
from gapeval_lab.report import draw_outcome
from gapeval_lab.run import run
from gapeval_lab.shipped import packaged
from gapeval_lab.tracking_scalars import scalars
from gapeval_lab.tracking_tables import pairs, tables
from gapeval_lab.work_folder import working_folder

LAYERS = 7  # the recipes write at layer 5, and a value has to be looked at above it
EDITED = [f"{family}_{method}" for family in ("janus_pro", "emu3", "vlm") for method in ("rome", "lora")]
SMALL = {"rome": ["intervention.steps=8"], "lora": ["intervention.steps=8", "intervention.lr=0.01"]}


def words() -> list[str]:
    """Those of the facts' questions, so that they are short."""
    texts = [f.edit.understand.text + f.edit.generate.text for f in read_fact_file(FACTS).facts]
    return sorted(
        {word for text in texts for word in text.lower().replace(".", " ").replace("?", " ").split()}
    )


FACTS = packaged("recipes") / "facts" / "visible_facts.jsonl"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> a tiny random checkpoint."""
    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        small: dict[str, Any] = {"layers": LAYERS, "hidden": 48, "mlp": 96, "codes": 40, "image_size": 16}
        for name, wide, (model, processor) in (
            ("janus_pro", 8.0, build_janus(words(), JanusShape(**small))),
            ("emu3", 4.0, build_emu3(words(), Emu3Shape(**small))),
        ):
            with torch.no_grad():
                for part, parameter in model.named_parameters():
                    if parameter.ndim == 2 and ("language_model" in part or "text_model.layers" in part):
                        parameter.mul_(wide)  # enough for prompts to matter
            model.save_pretrained(folder / name)
            processor.save_pretrained(folder / name)
        save_tiny("qwen2_5_vl", folder / "vlm", layers=LAYERS)
        stable_diffusion(folder / "diffusion")
    return {name: folder / name for name in ("janus_pro", "emu3", "vlm", "diffusion")}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both benchmarks, made up; a model called bagel answered GapEval's items."""
    place = tmp_path_factory.mktemp("data")
    data.answer_all(data.build(place / "GapEval"), "bagel")
    (place / "RealUnify").mkdir()
    write(place / "RealUnify", files(place / "RealUnify"))
    return place


def decide(request: Request) -> Act:
    """Right or wrong, yes or no: by a hash of all that is put before it."""
    even = hashlib.sha256(json.dumps(request.body["messages"]).encode()).digest()[0] % 2 == 0
    verdict = {"reason": "by hash", "score": int(even), "judge_result": int(even)}
    return said(json.dumps({**verdict, "answer": "yes" if even else "no"}))


@pytest.fixture(scope="module")
def judge() -> Iterator[Server]:
    with serving(decide) as server:
        yield server


def prepared(name: str, settings: Sequence[str], *, root: Path, judge: Server, kept: Path) -> Bench:
    """The recipe's parts, with its own judge at the test's address."""
    benchmark = "RealUnify" if name == "baseline_realunify" else "GapEval"
    given = [
        f"benchmark.root={root / benchmark}",
        f"judge.base_url={judge.url}",
        f"judge.cache={kept}",
        "evaluation.replicates=50",
        "evaluation.official=false",
    ]
    return load_bench(load(name, [*given, *settings]))


def go(bench: Bench, home: Path) -> Outcome:
    """Run it, and print and log it as the command does."""
    before = weights_of(bench.umm)
    with working_folder(home, bench.key) as work:
        outcome = run(bench, home=home, work=work, on_stage=lambda _: None, on_progress=lambda *_: None)
    assert before == bench.weights == weights_of(bench.umm) == outcome.weights_fingerprint
    assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome
    assert scalars(outcome) and tables(outcome, pairs(outcome))
    return outcome


def shown(outcome: Outcome, place: Path) -> str:
    """What is printed."""
    with (place / "shown").open("w") as stream:
        console = Console(width=170, record=True, file=stream)
        console.print(draw_outcome(outcome))
    return console.export_text()


@pytest.mark.parametrize("name", EDITED)
def test_the_whole_loop(
    name: str, weights: dict[str, Path], root: Path, judge: Server, tmp_path: Path
) -> None:
    family, _, method = name.rpartition("_")
    settings = [
        f"model.weights={weights[family]}",
        *("model.dtype=float32", "model.device=cpu", "model.max_new_tokens=4", "evaluation.items=6"),
        *("facts.count=2", *SMALL[method]),
        *(["model.size=[16, 16]"] if family == "emu3" else []),
    ]
    bench = prepared(name, settings, root=root, judge=judge, kept=tmp_path / "kept")
    parameters = {key: value.clone() for key, value in bench.umm.backbone().root.state_dict().items()}
    outcome = go(bench, tmp_path)
    assert outcome.reverted is True
    now = bench.umm.backbone().root.state_dict()
    assert all(torch.equal(value, now[key]) for key, value in parameters.items())
    assert outcome.kind == ("edit" if method == "rome" else "inject") and outcome.direction == "text"
    quality, identity = outcome.quality, outcome.identity_shift
    assert quality is not None and identity is not None and outcome.placebo_shift is not None
    assert identity.changed_items == 0
    moved = [identity.gap, identity.understanding, identity.generation]
    assert {(one.low, one.value, one.high) for one in moved if one is not None} == {(0, 0, 0)}
    logs = quality.target_logprob["text"]
    assert logs.after.value > logs.before.value + 0.1
    assert all(f.logprob_after["text"] > f.logprob_before["text"] for f in quality.facts)  # type: ignore[operator]
    both = family != "vlm"
    assert set(quality.reliability) == ({"text", "image"} if both else {"text"})
    assert (outcome.before.gap.gap is not None) == both
    rows = outcome.after.rows if outcome.after else []
    assert len(rows) == 6 and all((row.picture is not None) == both for row in rows)
    text = shown(outcome, tmp_path)
    assert "What shifted" in text and "log p(target)/text" in text


BASELINES: dict[str, dict[str, str]] = {
    "gapeval": {"model": "janus_pro"},
    "diffusion": {"model": "diffusion"},
    "pair": {"model.understand": "vlm", "model.generate": "diffusion"},
    "replay": {},
}
"""Recipe -> node -> whose tiny checkpoint takes the place of its weights."""


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name: str, weights: dict[str, Path], root: Path, judge: Server, tmp_path: Path) -> None:
    settings = ["evaluation.items=8"]
    for node, family in BASELINES[name].items():
        settings += [f"{node}.weights={weights[family]}", f"{node}.dtype=float32", f"{node}.device=cpu"]
        drawing = [f"{node}.steps=2", f"{node}.size=[16, 16]"]
        settings += drawing if family == "diffusion" else [f"{node}.max_new_tokens=4"]
    if name == "replay":
        settings.append(f"model.root={root / 'GapEval'}")
    bench = prepared(f"baseline_{name}", settings, root=root, judge=judge, kept=tmp_path / "kept")
    outcome = go(bench, tmp_path)
    assert (outcome.kind, outcome.after, outcome.quality) == ("baseline", None, None)
    rows, report = outcome.before.rows, outcome.before.gap
    assert len(rows) == 8 and all(row.picture is not None for row in rows)
    assert all((row.answer is None) == (name == "diffusion") for row in rows)
    assert any(row.generation is not None for row in rows)
    text = shown(outcome, tmp_path)
    if name == "diffusion":
        assert report.gap is None and report.understanding is None and report.generation is not None
        assert "No gap can be told" in text
    else:
        assert report.gap is not None and "Gap Score" in text
    if name == "replay":
        assert all(row.answer == f"told {row.id.removeprefix('data_')}" for row in rows)


def test_realunify_directly_and_in_steps(
    weights: dict[str, Path], root: Path, judge: Server, tmp_path: Path
) -> None:
    settings = [f"model.weights={weights['janus_pro']}", "model.dtype=float32", "model.max_new_tokens=4"]
    bench = prepared("baseline_realunify", settings, root=root, judge=judge, kept=tmp_path / "kept")
    seen = len(judge.requests)
    outcome = go(bench, tmp_path)
    asked = [
        request for request in judge.requests[seen:] if "Question about the attached" in request.texts[1]
    ]
    assert len(asked) == len(judge.requests) - seen > 0, "yes/no questions alone"
    rows = {row.id: row for row in outcome.before.rows}
    assert list(rows) == [f"{half}_{n}" for half in ("UEG", "GEU") for n in range(3)]
    for name, row in rows.items():
        drawn = name.startswith("UEG")
        assert (row.picture is not None, row.answer is not None) == (drawn, not drawn)
        assert (row.generation is not None, row.understanding is not None) == (drawn, not drawn)
        reason = row.generation_reason if drawn else row.understanding_reason
        assert ("not so" in reason or "all 2" in reason) if drawn else reason.startswith("read as: ")
    report = outcome.before.gap
    assert {name: (one.direction, one.n, one.unscored) for name, one in report.one_sided.items()} == {
        "UEG": ("generation", 3, 0),
        "GEU": ("understanding", 3, 0),
    }
    assert report.gap is None and report.understanding is not None and report.generation is not None
    understood, drawn_first = outcome.protocols
    assert (understood.name, understood.n, understood.unscored) == ("understood_first", 6, 0)
    assert set(understood.before.over_direct) == {"understanding", "generation"}
    same = drawn_first.before.over_direct["generation"]
    assert (same.low, same.value, same.high) == (0, 0, 0), "that way leaves drawings as they are"
    steps = {(row.protocol, row.item): row for row in outcome.protocol_rows}
    assert {name for name, _ in steps} == {"understood_first", "drawn_first"}
    assert [item for name, item in steps if name == "understood_first" and steps[name, item].step] == [
        f"UEG_{n}" for n in range(3)
    ]
    told = steps["drawn_first", "GEU_1"]
    assert told.asked.startswith("Which 1?") and told.step_picture and (told.direction == "understanding")
    drew = steps["understood_first", "UEG_1"]
    assert drew.asked == drew.step and drew.picture and drew.correct != [None]
    text = shown(outcome, tmp_path)
    assert "understood_first" in text and "over direct" in text and "not scored" not in text


def test_texts_of_the_users_own(
    weights: dict[str, Path], root: Path, judge: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GapEval has no texts beside its items: without any, ROME is refused before anything is asked."""
    settings = [f"model.weights={weights['vlm']}", "model.dtype=float32"]

    def made(*more: str) -> Bench:
        return prepared("vlm_rome", [*settings, *more], root=root, judge=judge, kept=tmp_path / "kept")

    with pytest.raises(UserError, match=r"facts.texts: missing; rome .* needs texts .* gapeval has none"):
        made("facts.texts=null")
    with pytest.raises(UserError, match=r"facts.texts: missing; lora .* needs texts"):
        prepared(
            "vlm_lora",
            [*settings, "intervention.kl_factor=0.1"],
            root=root,
            judge=judge,
            kept=tmp_path / "kept",
        )
    # Whether ROME of EasyEdit takes moments is a matter of its hyperparameters.
    needy = {"MEMIT": True, "ROME": False, "FT": False}
    assert {name: EasyEdit.model_validate({"method": name}).needs_texts for name in needy} == needy
    file = tmp_path / "mine.txt"
    file.write_text("one text\n\n one text \nanother\n")
    bench = made(f"facts.texts={file}")
    assert bench.stages[0].texts == ("one text", "another")
    file.write_text("one text\nsomething else\n")
    assert made(f"facts.texts={file}").key != bench.key, "another content is another run"
    file.write_text(" \n")
    with pytest.raises(UserError, match=r"facts.texts: .*mine.txt holds no text"):
        made(f"facts.texts={file}")
    shipped = made()
    assert len(shipped.stages[0].texts) > 900
    asked = "\n".join(shipped.stages[0].texts).lower()
    assert not any(f" {fact.subject} " in asked for fact in read_fact_file(FACTS).facts)
    # Where a benchmark has texts and the recipe names none, nothing is different.
    own = load_bench(load("rome_world_knowledge", ["evaluation.limit=4", "facts.count=1"]))
    assert own.stages[0].texts == tuple(own.benchmark.training_texts()) and own.read == []


def test_an_unknown_kind_of_item_is_refused_before_anything_is_asked(
    weights: dict[str, Path], judge: Server, tmp_path: Path
) -> None:
    root = data.build(tmp_path / "GapEval")
    data.item(root, 15, data.keys("world knowledge", "plants", 15))
    settings = [f"model.weights={weights['janus_pro']}", "model.dtype=float32"]
    with pytest.raises(UserError, match="'world knowledge/plants' of item data_15 is none of GapEval's"):
        prepared("baseline_gapeval", settings, root=tmp_path, judge=judge, kept=tmp_path / "kept")
