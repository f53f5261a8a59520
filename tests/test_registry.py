"""Plug-ins by name: the built-in table, outside packages, and what can be wrong with them."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from pydantic import BaseModel, ConfigDict, Field

from gapeval_lab import registry
from gapeval_lab.errors import UserError


class Good(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=0)
    layers: tuple[int, ...] = ()
    site: str = "mlp_down"


class Loose(BaseModel):
    layer: int = 0


class Greedy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    use: str = "x"


NOT_A_CLASS = 3


@pytest.fixture
def table(monkeypatch):
    """Installs a table of built-ins and of outside plug-ins for interventions."""

    def install(built_in, outside=()):
        monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "interventions": built_in})

        def entry_points(*, group):
            return [EntryPoint(n, t, group) for n, t in outside if group == "gapeval_lab.interventions"]

        monkeypatch.setattr(registry, "entry_points", entry_points)

    return install


def test_names_without_importing_anything(table):
    table({"rome": "no.such.module:Rome"}, [("memit", "nowhere:Memit"), ("rome", "other:Rome")])
    assert registry.names("interventions") == ["memit", "rome"]


def test_names_of_the_package_import_no_heavy_module():
    program = (
        "import sys\nfrom gapeval_lab import registry\n"
        "print([registry.names(kind) for kind in registry.BUILT_IN])\n"
        "print(sorted({'torch', 'transformers', 'mlflow', 'numpy', 'PIL'} & sys.modules.keys()))\n"
    )
    lines = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "'janus'" in lines[0]
    assert "'rome'" in lines[0]
    assert lines[1] == "[]"


def test_find_built_in_and_outside(table):
    table({"good": f"{__name__}:Good"}, [("far", f"{__name__}:Good")])
    assert registry.find("interventions", "good") is Good
    assert registry.find("interventions", "far") is Good


def test_a_built_in_is_not_replaced_by_an_outside_plug_in(table):
    table({"good": f"{__name__}:Good"}, [("good", f"{__name__}:Greedy")])
    assert registry.find("interventions", "good") is Good


def test_an_unknown_name_gets_the_closest_and_all_others(table):
    table({"rome": "a:A", "memit": "b:B"}, [("lora", "c:C")])
    with pytest.raises(UserError) as caught:
        registry.find("interventions", "memitt")
    assert str(caught.value) == (
        "interventions: 'memitt' is unknown; did you mean 'memit'? (there are: lora, memit, rome)"
    )


def test_two_packages_with_one_name(table):
    table({}, [("lora", "a:A"), ("lora", "b:B"), ("pmet", f"{__name__}:Good"), ("pmet", f"{__name__}:Good")])
    with pytest.raises(UserError, match="offered by several packages"):
        registry.find("interventions", "lora")
    assert registry.find("interventions", "pmet") is Good


@pytest.mark.parametrize("target", ["no_such_package.module:X", f"{__name__}:Missing"])
def test_an_outside_plug_in_that_cannot_be_imported(table, target):
    table({}, [("broken", target)])
    with pytest.raises(UserError, match=r"'broken' \(.*\) cannot be imported \(\w+: .*install what it needs"):
        registry.find("interventions", "broken")


def test_a_defect_of_an_outside_plug_in_is_the_users_and_one_of_ours_is_ours(table, tmp_path, monkeypatch):
    (tmp_path / "plugin_with_a_defect.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    table(
        {"ours": "plugin_with_a_defect:X", "lacks": "no_such_package:X"},
        [("theirs", "plugin_with_a_defect:X")],
    )
    with pytest.raises(UserError, match="ZeroDivisionError"):
        registry.find("interventions", "theirs")
    with pytest.raises(ZeroDivisionError):
        registry.find("interventions", "ours")
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        registry.find("interventions", "lacks")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NOT_A_CLASS", "no pydantic model class"),
        ("pytest", "no pydantic model class"),
        ("Loose", 'extra="forbid"'),
        ("Greedy", "a setting called 'use'"),
    ],
)
def test_what_a_plug_in_class_must_be(table, name, expected):
    table({"odd": f"{__name__}:{name}"})
    with pytest.raises(UserError, match=expected):
        registry.find("interventions", "odd")


def test_build_validates_the_settings(table):
    table({"good": f"{__name__}:Good"})
    built = registry.build("interventions", "good", settings={"layer": 2, "layers": [1, 2]})
    assert built == Good(layer=2, layers=(1, 2))
    with pytest.raises(UserError) as caught:
        registry.build("interventions", "good", settings={"layer": -1, "sight": "x", "layers": ["a"]})
    assert str(caught.value).splitlines() == [
        "interventions.good.layer: should be greater than or equal to 0; got -1",
        "interventions.good.layers.0: should be a valid integer; got 'a'",
        "interventions.good.sight: unknown key; did you mean 'site'?",
    ]


@pytest.mark.parametrize("value", ["2", True, 2.0])
def test_types_are_taken_strictly(table, value):
    table({"good": f"{__name__}:Good"})
    with pytest.raises(UserError, match=r"layer: should be a valid integer"):
        registry.build("interventions", "good", settings={"layer": value})
