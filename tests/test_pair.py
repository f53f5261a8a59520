"""Two models as one: each direction is its own model's, edits go into the one that understands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_umm import TrainableUMMContract, noise_picture
from PIL import Image
from test_janus import SHAPE, WORDS
from tiny_vlm import save_tiny

from gapeval_lab import registry
from gapeval_lab.bench import load_bench, weights_of
from gapeval_lab.delta import fingerprint
from gapeval_lab.errors import UserError
from gapeval_lab.evaluate import evaluate
from gapeval_lab.interfaces import UMM, Lesson, Training, Weightless
from gapeval_lab.interventions.lora import Lora
from gapeval_lab.interventions.rome import Rome
from gapeval_lab.items import Direction, Example, Fact, Item, Prompt
from gapeval_lab.judges.exact import Exact
from gapeval_lab.models.pair import Pair
from gapeval_lab.models.pair_model import LoadedPair, WeightlessPair
from gapeval_lab.models.tiny import build_janus
from gapeval_lab.recipe import model_node, resolve

RECIPE = """
name: paired
about: a test
seed: 0
model:
  use: pair
  understand: {config: embedded, batch: 8}
  generate: {use: janus, temperature: 0.5}
benchmark: {use: tinyworld}
judge: {use: exact}
"""


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A LLaVA and a Janus, both tiny and with two layers."""
    folder = tmp_path_factory.mktemp("pair")
    torch.manual_seed(3)
    for part in build_janus(WORDS, SHAPE):
        part.save_pretrained(folder / "janus")
    save_tiny("llava", folder / "llava")
    more = {"device": "cpu", "max_new_tokens": 4}
    return {
        "understand": {"use": "vlm", "weights": str(folder / "llava"), **more},
        "generate": {"use": "janus", "weights": str(folder / "janus"), **more},
    }


@pytest.fixture(scope="module")
def paired(sides: dict[str, dict[str, Any]]) -> LoadedPair:
    pair: LoadedPair = registry.build("models", "pair", settings=sides).load()
    return pair


class TestPair(TrainableUMMContract):
    trained = {Direction.UNDERSTANDING: "mlp_down", Direction.GENERATION: "draw_mlp_down"}

    @pytest.fixture
    def umm(self, paired: UMM) -> UMM:
        return paired


class Measured:
    """A model that draws, somewhere else."""

    name = "elsewhere/one"
    directions = frozenset({Direction.GENERATION})

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        raise UserError("it does not answer")

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        return [noise_picture(seed) for seed in seeds]

    def loss(self, examples: Sequence[Example], direction: Direction) -> Any:
        raise UserError("no likelihoods")

    def backbone(self) -> Any:
        raise UserError("no weights")

    def identity(self) -> str:
        return "elsewhere"

    def settings(self) -> dict[str, Any]:
        return {"family": "elsewhere"}


# --- each direction is its own model's ----------------------------------------------------------------


def test_each_model_is_asked_in_its_own_direction(paired: LoadedPair) -> None:
    prompts = [Prompt("red ?"), Prompt("the ring ?", (noise_picture(0),))]
    assert paired.answer(prompts, seeds=[1, 2]) == paired.understand.answer(prompts, seeds=[1, 2])
    drawn, alone = (umm.draw(prompts, seeds=[1, 2]) for umm in (paired, paired.generate))
    assert [one.tobytes() for one in drawn] == [one.tobytes() for one in alone]
    assert paired.name == "pair/llava-llava+janus-janus"
    assert paired.settings()["generate"] == paired.generate.settings()


def test_the_same_model_twice_has_the_gap_of_the_one() -> None:
    node = {"use": "janus", "device": "cpu"}
    pair = registry.build("models", "pair", settings={"understand": node, "generate": node}).load()
    benchmark = registry.build("benchmarks", "tinyworld", settings={})
    items = benchmark.items()[::190]
    both = [evaluate(umm, items, judge=Exact(), seed=3) for umm in (pair, pair.understand)]
    assert both[0].verdicts == both[1].verdicts
    assert {verdict.correct for verdict in both[0].verdicts.values()} == {True, False}
    assert pair.understand is not pair.generate


# --- writing ------------------------------------------------------------------------------------------


def fact() -> Fact:
    text = "the colour of the ring ?"
    item = Item("f", "knowledge", "colour", Prompt(text), Prompt(f"draw {text}"), ("green",))
    return Fact("f", "the ring", "colour", "red", "green", edit=item)


def test_edits_go_into_the_understanding_model(paired: LoadedPair) -> None:
    before = fingerprint(paired.backbone().root)
    rome = Rome(layer=0, steps=3, contexts=0)
    texts = [f"the colour of the {thing} ?" for thing in ("ring", "cross", "square")]
    delta = rome.fit(paired, [fact()], seed=0, texts=texts, log=lambda *_: None)
    assert list(delta.terms) == ["understand.model.language_model.layers.0.mlp.down_proj.weight"]
    asked, drawing = fingerprint(paired.understand.backbone().root), paired.generate.backbone().root
    untouched = fingerprint(drawing)
    with delta.applied(paired.backbone().root):
        assert fingerprint(paired.understand.backbone().root) != asked
        assert fingerprint(drawing) == untouched
    assert fingerprint(paired.backbone().root) == before


@pytest.mark.parametrize(
    ("side", "direction", "sites", "answer"),
    [
        ("text", Direction.UNDERSTANDING, ("mlp_down",), "green"),
        ("image", Direction.GENERATION, ("draw_mlp_down",), noise_picture(5, 16)),
    ],
)
def test_lora_trains_each_model_by_its_own_loss(
    paired: LoadedPair, side: Any, direction: Direction, sites: tuple[str, ...], answer: Any
) -> None:
    lesson = Lesson("f", direction, Example(Prompt("the colour of the ring ?"), answer))
    lora = Lora(direction=side, steps=6, lr=0.02, rank=2, batch=1, sites=sites)
    before = fingerprint(paired.backbone().root)
    delta = lora.fit(paired, [fact()], seed=0, texts=[], log=lambda *_: None, training=Training([lesson]))
    assert fingerprint(paired.backbone().root) == before
    part = "understand" if side == "text" else "generate"
    assert all(name.startswith(f"{part}.") for name in delta.terms)
    with torch.no_grad():
        untouched = paired.loss([lesson.example], direction)
        with delta.applied(paired.backbone().root):
            assert bool((paired.loss([lesson.example], direction) < untouched).all())


def test_training_the_model_that_the_loss_does_not_see_is_refused(paired: LoadedPair) -> None:
    lesson = Lesson("f", Direction.GENERATION, Example(Prompt("the ring"), noise_picture(5, 16)))
    lora = Lora(direction="image", steps=1, sites=("mlp_down",))
    with pytest.raises(UserError, match=r"^sites: .* \(those that draw start with 'draw_'"):
        lora.fit(paired, [fact()], seed=0, texts=[], log=lambda *_: None, training=Training([lesson]))


def test_sites_of_a_drawing_model_of_another_depth_are_left_out(
    sides: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    deeper = type(SHAPE)(layers=3, hidden=16, mlp=16, heads=2, codes=8, image_size=16, vision_hidden=8)
    for part in build_janus(WORDS, deeper):
        part.save_pretrained(tmp_path / "deep")
    generate = sides["generate"] | {"weights": str(tmp_path / "deep")}
    pair = registry.build("models", "pair", settings=sides | {"generate": generate}).load()
    sites = pair.backbone().sites
    assert sites.layers == 2 and "mlp_down" in sites.templates
    assert not [site for site in sites.templates if site.startswith("draw_")]


# --- weights out of reach -----------------------------------------------------------------------------


def test_a_pair_with_weights_out_of_reach_is_measured_only(
    paired: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"vlm": paired.understand, "janus": Measured()}
    build = registry.build

    class Ready:
        def __init__(self, umm: Any) -> None:
            self.load = lambda: umm

    def instead(kind: Any, name: str, *, settings: Any) -> Any:
        return Ready(made[name]) if name in made else build(kind, name, settings=settings)

    monkeypatch.setattr(registry, "build", instead)
    settings = Pair.model_validate(
        {"understand": {"use": "vlm", "weights": "x"}, "generate": {"use": "janus"}}
    )
    pair = settings.load()
    assert isinstance(pair, WeightlessPair) and isinstance(pair, Weightless)
    assert not isinstance(paired, Weightless)
    assert pair.answer([Prompt("red ?")], seeds=[0]) == paired.answer([Prompt("red ?")], seeds=[0])
    assert pair.draw([Prompt("red")], seeds=[4])[0].size == (32, 32)
    first = weights_of(pair)
    with torch.no_grad():
        weight = paired.understand.backbone().root.get_parameter("lm_head.weight")
        kept = weight.clone()
        weight.add_(1.0)
        changed = weights_of(pair)
        weight.copy_(kept)
    assert changed != first == weights_of(pair)
    with pytest.raises(UserError, match="not all in reach"):
        pair.backbone()


# --- in recipes ---------------------------------------------------------------------------------------


def test_nodes_inside_are_resolved_like_any_other() -> None:
    loaded = resolve(RECIPE, source="r", overrides=["model.generate.guidance=2.0"])
    model = loaded.resolved["model"]
    assert model["understand"]["weights"] == "embedded"  # from the config
    assert (model["understand"]["batch"], model["generate"]["batch"]) == (8, 256)
    assert (model["generate"]["temperature"], model["generate"]["guidance"]) == (0.5, 2.0)
    pair = loaded.recipe.build("model")
    assert isinstance(pair, Pair)
    assert pair.generate.settings["guidance"] == 2.0


def test_mistakes_inside_are_named_with_their_path_and_line() -> None:
    text = RECIPE.replace("batch: 8", "bach: 8").replace("temperature: 0.5", "temperature: hot")
    with pytest.raises(UserError) as caught:
        resolve(text + "\n", source="r", overrides=["model.more=1"])
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == "r: 3 to mend"
    assert "model.understand.bach: unknown key; did you mean 'batch'? (line 7)" in lines
    assert "model.generate.temperature: should be a valid number; got 'hot' (line 8)" in lines
    assert any(line.startswith("model.more: unknown key") and line.endswith("(--set)") for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "use: janus",
            "use: januss",
            "model.generate.use: models: 'januss' is unknown; did you mean 'janus'?",
        ),
        ("config: embedded", "config: embeded", "model.understand.config: file: 'embeded' was found neither"),
        ("{use: janus, temperature: 0.5}", "janus", "model.generate: should be a mapping such as"),
        ("  generate: {use: janus, temperature: 0.5}\n", "", "model.generate: missing"),
    ],
)
def test_what_a_half_must_be(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(UserError) as caught:
        resolve(RECIPE.replace(old, new), source="r")
    assert message in str(caught.value)
    assert "r: 1 to mend" in str(caught.value)


def test_a_half_that_lacks_its_direction_or_cannot_be_loaded(sides: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"^model\.generate: llava/llava lacks the generation direction"):
        registry.build("models", "pair", settings=sides | {"generate": sides["understand"]}).load()
    gone = sides["generate"] | {"weights": "no/such/folder"}
    with pytest.raises(UserError, match=r"^model\.generate\.weights: 'no/such/folder' does not exist"):
        registry.build("models", "pair", settings=sides | {"generate": gone}).load()


def test_a_config_may_be_a_pair(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("use: pair\nunderstand: {config: embedded}\ngenerate: {config: embedded}\n")
    node = model_node(str(file), ["generate.guidance=1.5"])
    assert node.use == "pair"
    assert node.settings["generate"]["guidance"] == 1.5
    with pytest.raises(UserError, match=r"model\.generate\.guidanse: unknown key; did you mean 'guidance'"):
        model_node(str(file), ["generate.guidanse=1.5"])


def test_a_bench_takes_it(paired: LoadedPair) -> None:
    bench = load_bench(resolve(RECIPE, source="r", overrides=["evaluation={limit: 4}"]))
    assert isinstance(bench.umm, LoadedPair)
    assert bench.weights == fingerprint(bench.umm.backbone().root)
