"""Recipes: strict, with every mistake at once; one name for a field everywhere."""

import json
import subprocess
import sys
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gapeval_lab import recipe, registry
from gapeval_lab.catalogue import available, describe
from gapeval_lab.errors import UserError
from gapeval_lab.recipe import Recipe, content_hash, flatten, load, resolve


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sites(Strict):
    templates: dict[str, str] = {}
    layers: int = 5


class FakeModel(Strict):
    weights: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    sites: Sites = Sites()


class FakeBenchmark(Strict):
    version: int = 1


class FakeJudge(Strict):
    pass


class FakeEdit(Strict):
    layer: int = Field(ge=0)
    lr: float = 0.5
    layers: tuple[int, ...] | None = None
    site: str = "mlp_down"
    nested: Sites | None = None
    mixed: int | str = 0

    @model_validator(mode="after")
    def _check(self):
        if self.lr > 100:
            raise ValueError("lr and layer do not go together")
        if self.lr < 0:
            raise UserError("lr is negative")
        return self


GOOD = """\
# a comment
name: mine
about: What it shows.
seed: 3
model:
  use: fake
  weights: w.bin
benchmark: {use: world}
judge: {use: exact}
facts:
  file: facts/x.jsonl
intervention:
  use: edit
  layer: 2
"""


@pytest.fixture(autouse=True)
def table(monkeypatch, tmp_path):
    monkeypatch.setattr(
        registry,
        "BUILT_IN",
        {
            "models": {"fake": f"{__name__}:FakeModel"},
            "benchmarks": {"world": f"{__name__}:FakeBenchmark"},
            "judges": {"exact": f"{__name__}:FakeJudge"},
            "interventions": {"edit": f"{__name__}:FakeEdit", "gone": "no_such_package:X"},
        },
    )
    monkeypatch.chdir(tmp_path)


SEARCH = "{goal: {a: minimize}, space: {intervention.lr: {type: float, low: 1e-3, high: 1}}}"


def resolved(text=GOOD, *overrides):
    return resolve(text, source="mine.yaml", overrides=overrides)


def errors_of(text, *overrides):
    with pytest.raises(UserError) as caught:
        resolved(text, *overrides)
    head, *lines = str(caught.value).split("\n  ")
    assert head == f"mine.yaml: {len(lines)} to mend"
    return lines


def test_defaults_of_plug_ins_stand_in_the_resolved_recipe():
    loaded = resolved()
    assert loaded.resolved == {
        "name": "mine",
        "about": "What it shows.",
        "seed": 3,
        "model": {
            "use": "fake",
            "weights": "w.bin",
            "dtype": "float32",
            "sites": {"templates": {}, "layers": 5},
        },
        "benchmark": {"use": "world", "version": 1},
        "judge": {"use": "exact"},
        "facts": {
            "file": "facts/x.jsonl",
            "format": "lines",
            "split": "test",
            "count": None,
            "draw": None,
            "flawed": "refuse",
            "pictures": None,
            "texts": None,
        },
        "intervention": {
            "use": "edit",
            "layer": 2,
            "lr": 0.5,
            "layers": None,
            "site": "mlp_down",
            "nested": None,
            "mixed": 0,
        },
        "then": [],
        "evaluation": {
            "batch": 32,
            "items": None,
            "split": None,
            "categories": None,
            "limit": None,
            "replicates": 10_000,
            "official": True,
            "reasoning": None,
            "protocols": {},
        },
        "emergence": None,
        "controls": {"identity": True, "placebo": True},
        "search": None,
    }
    assert (loaded.text, loaded.source, loaded.overrides) == (GOOD, "mine.yaml", ())
    assert len(loaded.hash) == 64


def test_build_makes_the_plug_ins():
    loaded = resolved(GOOD, "intervention.layers=[1, 2]")
    assert loaded.recipe.build("intervention") == FakeEdit(layer=2, layers=(1, 2))
    assert loaded.recipe.build("model") == FakeModel(weights="w.bin")
    baseline = resolved(GOOD, "intervention=null", "facts=null").recipe
    with pytest.raises(ValueError, match="has no intervention"):
        baseline.build("intervention")


def test_a_resolved_recipe_resolves_to_itself():
    first = resolved(GOOD, "intervention.nested.layers=4", f"search={SEARCH}")
    again = resolved(yaml.safe_dump(first.resolved))
    assert again.resolved == first.resolved
    assert again.hash == first.hash
    assert again.recipe == first.recipe == Recipe.model_validate_json(json.dumps(first.resolved))


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        resolved().recipe.seed = 4
    with pytest.raises(ValueError, match="frozen"):
        resolved().recipe.model.use = "x"


def test_every_mistake_at_once_with_path_line_and_suggestion():
    text = """\
name: a/b
abuot: x
seed: -1
model: {use: fake, weights: 7, dtype: float16}
benchmark: {use: wrold}
judge:
facts:
  file: x
  splitt: test
  count: 0
intervention:
  use: edit
  layr: 2
  layers: [1, two]
  nested:
    layerz: 3
  mixed: [1]
evaluation:
  bach: 2
  items: many
  categories: []
controls: {identity: 1}
search: {intervention.lr: 3}
extra: 1
seed: 2
"""
    lines = errors_of(text)
    expected = [
        "seed: stands twice (lines 3 and 25); keep one of them (line 3)",
        "model.weights: should be a valid string; got 7 (line 4)",
        "model.dtype: should be 'float32' or 'bfloat16'; got 'float16' (line 4)",
        "benchmark.use: benchmarks: 'wrold' is unknown; did you mean 'world'? (there are: world) (line 5)",
        "intervention.layr: unknown key; did you mean 'layer'? (line 13)",
        "intervention.layer: missing; this key must be given (line 11)",
        "intervention.layers.1: should be a valid integer; got 'two' (line 14)",
        "intervention.nested.layerz: unknown key; did you mean 'layers'? (line 16)",
        "abuot: unknown key; did you mean 'about'? (line 2)",
        "about: missing; this key must be given",
        "seed: should be greater than or equal to 0; got -1 (line 3)",
        "facts.splitt: unknown key; did you mean 'split'? (line 9)",
        "facts.count: should be greater than or equal to 1; got 0 (line 10)",
        "evaluation.bach: unknown key; did you mean 'batch'? (line 19)",
        "evaluation.items: should be a valid integer; got 'many' (line 20)",
        "controls.identity: should be a valid boolean; got 1 (line 22)",
        "search.goal: missing; this key must be given (line 23)",
        "search.space: missing; this key must be given (line 23)",
        "search.intervention.lr: unknown key; known here: ",
        "extra: unknown key",
    ]
    for line in expected:
        assert any(found.startswith(line) for found in lines), (line, lines)
    for path in ("name", "judge", "intervention.mixed", "evaluation.categories"):
        assert any(found.startswith(f"{path}: ") for found in lines), (path, lines)
    assert len(lines) == len(expected) + 4


def test_an_unknown_key_without_a_close_one_gets_the_known_ones():
    (line,) = errors_of(GOOD + "controls: {zzz: true}\n")
    assert line == "controls.zzz: unknown key; known here: identity, placebo (line 15)"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model=fake", "model: should be a mapping such as {use: name}; got 'fake' (--set)"),
        ("model={weights: x}", "model.use: should name one of: fake; got None (--set)"),
        ("intervention.use=gone", "intervention.use: interventions: the plug-in 'gone'"),
        ("intervention.lr=101", "intervention: lr and layer do not go together (line 12)"),
        ("intervention.lr=-1", "intervention: lr is negative (line 12)"),
        ("facts=null", "facts: missing; an intervention needs facts"),
        ("name=2024", "name: should be a valid string; got 2024 (--set)"),
        ("seed=1.0", "seed: should be a valid integer"),
        ("seed=true", "seed: should be a valid integer; got True (--set)"),
        ("controls.placebo=no", "controls.placebo: should be a valid boolean; got 'no' (--set)"),
        ("intervention.layr=3", "intervention.layr: unknown key; did you mean 'layer'? (--set)"),
        ("evaluaton.batch=3", "evaluaton: unknown key; did you mean 'evaluation'? (--set)"),
        ("evaluation.reasoning.questions=[]", "evaluation.reasoning.questions: should have at least 1 item"),
        (
            "evaluation.reasoning.questions=['what is {sbject} ?']",
            "evaluation.reasoning: questions.0: {sbject} is unknown here; use {subject}, {relation}, ",
        ),
        (
            "evaluation.reasoning.questions=['{text}']",
            "evaluation.reasoning: questions.0: {text} is unknown here; use {subject}",
        ),
        (
            "evaluation.reasoning.note='{asked}'",
            "evaluation.reasoning: note: should hold {answer}, what the model wrote; got '{asked}'",
        ),
        (
            "evaluation.reasoning.draw={whole: 'draw {prompt}'}",
            "evaluation.reasoning: draw.whole: should hold {text} or {caption}, what the model wrote",
        ),
        (
            "evaluation.reasoning.draw={direct: '{text}'}",
            "evaluation.reasoning: draw.direct: this name is taken; choose another",
        ),
        ("evaluation.reasoning.draw={'a b': '{text}'}", "evaluation.reasoning.draw.a b"),
        ("evaluation.reasoning.draw={}", "evaluation.reasoning.draw: should have at least 1 item"),
        ("evaluation.reasoning.drow={}", "evaluation.reasoning.drow: unknown key; did you mean 'draw'?"),
        ("seed.x=3", "seed.x: 'seed' is no mapping; set it whole (--set)"),
        (
            f"search={SEARCH.replace('lr', 'lt')}",
            "search.space.intervention.lt: no field of this recipe; did you mean 'intervention.lr'?",
        ),
        ("model={use: fake, weights: x, use: fake}", "model.use: stands twice"),
    ],
)
def test_single_mistakes(override, expected):
    (line,) = errors_of(GOOD, override)
    assert line.startswith(expected)


@pytest.mark.parametrize("override", ["seed", "seed=", "=3", "a..b=1", ".a=1", "seed= "])
def test_overrides_need_the_form_path_equals_value(override):
    with pytest.raises(UserError, match="--set: .*path=value"):
        resolved(GOOD, override)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("intervention.lr=1e-4", "intervention.lr", 1e-4),
        ("intervention.lr=1e-05", "intervention.lr", 1e-5),
        ("intervention.layer=4", "intervention.layer", 4),
        ("intervention.layers=[3,4]", "intervention.layers", [3, 4]),
        ("intervention.nested.layers=9", "intervention.nested.layers", 9),
        ("controls.placebo=false", "controls.placebo", False),
        ("evaluation.items=null", "evaluation.items", None),
        ("name='2024'", "name", "2024"),
        ("about=a=b", "about", "a=b"),
        ("about=no", "about", "no"),
        ("model.sites.layers=7", "model.sites.layers", 7),
    ],
)
def test_overrides_set_one_field_and_change_the_hash(override, path, value):
    loaded = resolved(GOOD, override)
    before, after = flatten(resolved().resolved), flatten(loaded.resolved)
    assert after[path] == value
    assert all(after[key] == before[key] for key in before.keys() & after.keys() if key != path)
    assert loaded.overrides == (override,)
    assert (loaded.hash != resolved().hash) == (before.get(path) != value)


def test_questions_follow_an_answer_and_need_an_intervention():
    reasoning = "evaluation.reasoning={questions: ['{subject} ?', '{text} , {relation} ?']}"
    found = resolved(GOOD, reasoning).recipe.evaluation.reasoning
    assert found.draw == {"whole": "{text}", "caption": "{caption}"}
    assert found.uses("relation") and found.uses("subject") and not found.uses("prompt")
    bare = ("intervention=null", "facts=null", reasoning)
    assert errors_of(GOOD, *bare) == [
        "evaluation.reasoning: it asks about facts, and there is no intervention; take it out (--set)"
    ]


def test_overrides_reach_the_keys_of_the_search_section():
    text, layer = GOOD + f"search: {SEARCH}\n", "search.space.intervention.layer"
    given = ["search.space.intervention.lr.low=0.2", f"{layer}.type=int", f"{layer}.low=0", f"{layer}.high=3"]
    loaded = resolved(text, *given)
    space = loaded.resolved["search"]["space"]
    assert (space["intervention.lr"]["low"], space["intervention.lr"]["high"]) == (0.2, 1.0)
    assert (space["intervention.layer"]["low"], space["intervention.layer"]["high"]) == (0, 3)


def test_every_leaf_can_be_set_by_its_flattened_path():
    loaded = resolved(GOOD, "evaluation.categories=[a, b]", "intervention.lr=0.001")
    overrides = [f"{path}={json.dumps(value)}" for path, value in flatten(loaded.resolved).items()]
    assert resolved(GOOD, *overrides).hash == loaded.hash


@settings(max_examples=50, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=100))
def test_sampled_numbers_survive_an_override(value):
    assert resolved(GOOD, f"intervention.lr={value!r}").recipe.build("intervention").lr == value


def config(tmp_path, text, name="small", kind="models"):
    path = tmp_path / "configs" / kind / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


CONFIGURED = GOOD.replace("  use: fake\n  weights: w.bin\n", "  config: small\n")


def test_a_config_is_the_base_and_the_nodes_own_keys_go_over_it(tmp_path):
    config(tmp_path, "use: fake\nweights: w.bin\nsites: {layers: 8, templates: {mlp_down: a.b}}\n")
    plain = resolved(CONFIGURED)
    assert plain.resolved["model"]["sites"] == {"templates": {"mlp_down": "a.b"}, "layers": 8}
    assert "config" not in plain.resolved["model"]
    own = resolved(
        CONFIGURED.replace("config: small", "{config: small, dtype: bfloat16, sites: {layers: 9}}")
    )
    assert own.resolved["model"] == plain.resolved["model"] | {
        "dtype": "bfloat16",
        "sites": {"templates": {"mlp_down": "a.b"}, "layers": 9},
    }
    assert resolved(CONFIGURED, "model.dtype=bfloat16", "model.sites.layers=9").hash == own.hash
    spelled = resolved(GOOD, "model.sites={layers: 8, templates: {mlp_down: a.b}}")
    assert spelled.hash == plain.hash


def test_every_kind_of_node_has_configs(tmp_path):
    config(tmp_path, "use: edit\nlayer: 1\n", kind="interventions")
    loaded = resolved(GOOD, "intervention={config: small, lr: 2}")
    assert loaded.recipe.build("intervention") == FakeEdit(layer=1, lr=2.0)


def test_mistakes_in_a_config_are_located_there(tmp_path):
    config(tmp_path, "use: fake\nweights: w.bin\ndtyp: float32\nweights: x\n")
    lines = errors_of(CONFIGURED)
    assert "model.dtyp: unknown key; did you mean 'dtype'? (configs/models/small.yaml line 3)" in lines
    assert any(line.startswith("model.weights: stands twice (lines 2 and 4)") for line in lines)
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]\n", "model.config: configs/models/small.yaml should hold a mapping"),
        ("a: [\n", "model.config: configs/models/small.yaml: line 2, column 1: not valid YAML"),
        ("use: fake\nweights: x\nconfig: other\n", "model.config: unknown key"),
    ],
)
def test_configs_that_are_none(tmp_path, text, expected):
    config(tmp_path, text)
    (line,) = errors_of(CONFIGURED)
    assert line.startswith(expected)


def test_an_unknown_config_gets_the_closest_name(tmp_path):
    config(tmp_path, "use: fake\n", name="smalll")
    (line,) = errors_of(CONFIGURED)
    assert line.startswith("model.config: file: 'small' was found neither")
    assert "did you mean 'smalll'?" in line
    (line,) = errors_of(CONFIGURED.replace("small", "[a]"))
    assert line.startswith("model.config: should be the name of a config; got ['a']")


def test_the_hash_depends_on_content_alone():
    data = resolved().resolved
    shuffled = dict(reversed(data.items()))
    assert content_hash(shuffled) == content_hash(data) == resolved(GOOD + "\n# more\n").hash
    assert content_hash(data | {"seed": 4}) != content_hash(data)
    # Written down once: a change of the hash makes every stored run a stranger.
    known = {"b": [1, 2.5, None, True], "a": {"ü": "x"}}
    assert content_hash(known) == "55f2191f7fd5ac60a114b5776334cb29fce2815db04b66130e3b0426186310c9"


def test_flatten():
    data = {"a": {"b": {"c": 1}, "d": [1, {"e": 2}], "f": {}}, "g": None}
    assert flatten(data) == {"a.b.c": 1, "a.d": [1, {"e": 2}], "a.f": {}, "g": None}


def test_load_looks_for_a_path_then_recipes_then_the_package(tmp_path, monkeypatch):
    def put(path, name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(GOOD.replace("name: mine", f"name: {name}"))

    put(tmp_path / "shipped" / "both.yaml", "packaged")
    put(tmp_path / "shipped" / "only.yaml", "packaged-only")
    put(tmp_path / "recipes" / "both.yaml", "local")
    put(tmp_path / "elsewhere" / "own.yaml", "path")
    monkeypatch.setattr("gapeval_lab.shipped.packaged", lambda folder: tmp_path / "shipped")
    assert load("elsewhere/own.yaml").recipe.name == "path"
    assert load(str(tmp_path / "elsewhere" / "own")).recipe.name == "path"
    assert load("both").recipe.name == load("both.yaml").recipe.name == "local"
    assert load("only", ["seed=9"]).recipe.seed == 9
    assert load("only").source == str(tmp_path / "shipped" / "only.yaml")
    assert available() == ["both", "only"]
    with pytest.raises(UserError, match=r"'botth' was found neither.*did you mean 'both'\?"):
        load("botth")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "word\n"])
def test_files_that_hold_no_mapping(text):
    with pytest.raises(UserError, match="a recipe is a mapping"):
        resolved(text)


def test_describe_reads_the_yaml_alone(tmp_path):
    path = tmp_path / "recipes" / "far.yaml"
    path.parent.mkdir()
    path.write_text(
        "name: far\nabout: >\n  two\n  lines\nmodel: {config: nowhere}\njudge: {use: none}\nintervention:\n"
    )
    summary = describe("far")
    assert (summary.name, summary.about) == ("far", "two lines")
    assert summary.uses == {"model": "nowhere", "judge": "none"}
    path.write_text("about: x\n")
    assert describe("far").name == "far"
    path.write_text("[]")
    with pytest.raises(UserError, match="a recipe is a mapping"):
        describe("far")


def test_importing_and_describing_imports_nothing_heavy(tmp_path):
    (tmp_path / "one.yaml").write_text(GOOD)
    program = (
        "import sys\nfrom gapeval_lab import catalogue, facts\n"
        "print(catalogue.describe('one.yaml').name, catalogue.available() != [])\n"
        "print(sorted({'torch', 'transformers', 'mlflow', 'numpy', 'matplotlib'} & sys.modules.keys()))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "mine True\n[]\n"


def test_the_table_of_nodes_is_the_schemas():
    nodes = {
        name
        for name, f in Recipe.model_fields.items()
        if recipe.Node in getattr(f.annotation, "__args__", (f.annotation,))
    }
    assert nodes == set(recipe.KINDS)
