"""The deltas of a store: listed oldest first, found by path, run and address; and added up."""

import json
import os
from pathlib import Path

import pytest
import torch

from gapeval_lab.delta import Dense, LowRank, WeightDelta
from gapeval_lab.delta_compose import compose
from gapeval_lab.delta_file import Origin, ScaledFile, read_head
from gapeval_lab.errors import UserError
from gapeval_lab.stored_deltas import composed_path, resolve, stored


def delta(value: float, *, rank: int = 1) -> WeightDelta:
    return WeightDelta({"w": LowRank(torch.full((3, rank), value), torch.ones(rank, 2))})


def make_run(
    home: Path, name: str, change: WeightDelta | None, *, started: str, stages: int = 0, origin: bool = True
) -> Path:
    """A run's folder, as far as deltas are concerned."""
    folder = home / "outcomes" / name
    folder.mkdir(parents=True)
    weights = Origin("aa" * 32, "text") if origin else None
    if change is not None:
        change.save(folder / "delta.safetensors", origin=weights)
    for n in range(1, stages + 1):
        delta(n).save(folder / "stages" / str(n) / "delta.safetensors", origin=weights)
    record = {
        "started": started,
        "recipe": {"name": "a_recipe", "intervention": {"use": "rome"}},
        "direction": "text",
        "facts": [{"id": "fact-1"}, {"id": "fact-2"}],
        "delta_norms": change.norms() if change else {},
        "stages": [
            {"method": f"m{n}", "direction": "image", "facts": [f"f{n}"]} for n in range(1, stages + 1)
        ],
    }
    (folder / "outcome.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_run(tmp_path, "later", delta(2.0).then(delta(3.0)), started="2026-02-01", stages=2)
    make_run(tmp_path, "earlier", delta(1.0), started="2026-01-01")
    make_run(tmp_path, "baseline", None, started="2026-03-01")
    return tmp_path


def test_runs_and_their_interventions_are_listed_oldest_first(home: Path) -> None:
    entries = stored(home)
    assert [entry.name for entry in entries] == ["earlier", "later", "later/1", "later/2"]
    first, whole, one, _ = entries
    assert (first.recipe, first.method, first.direction) == ("a_recipe", "rome", "text")
    assert first.facts == ("fact-1", "fact-2")
    assert first.head is not None and first.head.address == delta(1.0).digest
    assert first.norm == pytest.approx(delta(1.0).norm(), rel=1e-5)
    assert whole.method == "m1 + m2"
    assert whole.head is not None and whole.head.ranks == "2"
    assert (one.method, one.direction, one.facts) == ("m1", "image", ("f1",))


def test_composed_deltas_are_listed_when_they_were_made(home: Path) -> None:
    path = delta(9.0).save(composed_path(home, delta(9.0).digest))
    os.utime(path, (1_770_000_000, 1_770_000_000))  # 2026-02-02
    assert [entry.name for entry in stored(home)][-1] == ""
    os.utime(path, (0, 0))
    assert stored(home)[0].path == path


def test_an_older_file_has_its_norm_from_the_record(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "old", delta(1.0), started="2026-01-01")
    from safetensors.torch import save_file

    note = json.dumps({"format": "gapeval-lab-delta-1", "digest": delta(1.0).digest})
    parts = delta(1.0).terms["w"].parts
    tensors = {f"w:{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "delta.safetensors", metadata={"gapeval_lab": note})
    (entry,) = stored(tmp_path)
    assert entry.norm == pytest.approx(delta(1.0).norm())


@pytest.mark.parametrize("record", [None, "{", "[]", '{"recipe": 1, "facts": [3], "delta_norms": null}'])
def test_a_record_that_cannot_be_read_hides_no_delta(home: Path, record: str | None) -> None:
    file = home / "outcomes" / "earlier" / "outcome.json"
    file.unlink()
    if record is not None:
        file.write_text(record)
    (entry,) = (entry for entry in stored(home) if entry.name == "earlier")
    assert entry.head is not None and entry.recipe == ""


def test_a_spoilt_file_is_listed_with_what_is_wrong(home: Path) -> None:
    (home / "outcomes" / "earlier" / "delta.safetensors").write_bytes(b"nothing of the kind")
    entry = stored(home)[0]
    assert entry.head is None and "cannot read" in entry.problem
    assert resolve(delta(2.0).digest[:8], home).path.exists()  # the others are still found


def test_a_store_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert stored(tmp_path / "nowhere") == []


def test_every_way_to_name_a_delta(home: Path) -> None:
    file = home / "outcomes" / "earlier" / "delta.safetensors"
    address = delta(1.0).digest
    for words in (str(file), str(file.parent), "earlier", address, address[:12], address[:4]):
        assert resolve(words, home) == ScaledFile(words, file, 1.0)
    stage = home / "outcomes" / "later" / "stages" / "2" / "delta.safetensors"
    assert resolve("later/2", home).path == stage
    assert resolve("later/2*-0.5", home) == ScaledFile("later/2", stage, -0.5)
    assert resolve(f"{address[:6]}*1e-2", home).scale == 0.01


def test_a_file_whose_name_looks_scaled_is_that_file(tmp_path: Path) -> None:
    path = delta(1.0).save(tmp_path / "delta*2")
    assert resolve(str(path), tmp_path) == ScaledFile(str(path), path, 1.0)


def test_copies_of_one_delta_are_not_ambiguous(home: Path) -> None:
    make_run(home, "copy", delta(1.0), started="2026-05-01")
    assert resolve(delta(1.0).digest[:12], home).path.parent.name == "earlier"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nothing", "'nothing' is no file, no run with a delta and no address"),
        ("earlyer", "did you mean 'earlier'"),
        ("baseline", "'baseline' changed no weights"),
        ("later/3", "'later/3' is no file"),
        ("0000", "'0000' is no file"),
        ("earlier*1.2.3", "no number"),
        ("earlier*1e999", "no number"),
    ],
)
def test_bad_references_are_one_message(home: Path, words: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("*", r"\*")):
        resolve(words, home)


def test_an_address_that_two_deltas_begin_with_is_ambiguous(tmp_path: Path) -> None:
    heads: dict[str, int] = {}
    number = 0
    while (start := delta(number).digest[:4]) not in heads:  # a few hundred tries
        heads[start] = number
        number += 1
    make_run(tmp_path, "one", delta(number), started="1")
    make_run(tmp_path, "two", delta(heads[start]), started="2")
    with pytest.raises(UserError, match=f"'{start}' begins 2 addresses .*give more letters"):
        resolve(start, tmp_path)
    assert resolve(delta(number).digest, tmp_path).path.parent.name == "one"


def test_a_sum_is_in_order_and_remembers_its_parts(home: Path, tmp_path: Path) -> None:
    files = [resolve("earlier", home), resolve("later*-0.5", home)]
    total, origin = compose(files)
    wanted = delta(1.0).then(delta(2.0).then(delta(3.0)).scaled(-0.5))
    assert total.digest == wanted.digest
    assert compose(files[::-1])[0].digest != total.digest  # the factors stand in another order
    assert torch.allclose(compose(files[::-1])[0].terms["w"].dense(), total.terms["w"].dense())
    assert (origin.weights, origin.direction) == ("aa" * 32, "text")
    assert [(part.name, part.scale) for part in origin.parts] == [("earlier", 1.0), ("later", -0.5)]
    assert origin.parts[0].address == delta(1.0).digest
    path = total.save(tmp_path / "sum", origin=origin)
    assert read_head(path).origin == origin


def test_deltas_of_different_weights_are_not_added_unless_asked(tmp_path: Path) -> None:
    files = [
        ScaledFile(name, delta(1.0).save(tmp_path / name, origin=Origin(name * 32, side)), 1.0)
        for name, side in (("ab", "text"), ("cd", "image"))
    ]
    with pytest.raises(UserError, match=r"different weights \(abababababab, cdcdcdcdcdcd\)"):
        compose(files)
    _, origin = compose(files, any_weights=True)
    assert (origin.weights, origin.direction) == ("", "both")


def test_deltas_of_different_shapes_are_not_added(tmp_path: Path) -> None:
    files = [
        ScaledFile("a", delta(1.0).save(tmp_path / "a"), 1.0),
        ScaledFile("b", WeightDelta({"w": Dense(torch.ones(5))}).save(tmp_path / "b"), 1.0),
    ]
    with pytest.raises(UserError, match=r"w: terms of \(3, 2\) and \(5,\)"):
        compose(files)
