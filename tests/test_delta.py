"""WeightDelta: exact to the bit, whatever happens; stored and imitated faithfully."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from gapeval_lab.delta import Dense, LowRank, WeightDelta, fingerprint, placebo
from gapeval_lab.delta_file import Origin, Part, read_head, require_weights
from gapeval_lab.errors import UserError


class Net(nn.Module):
    """Two layers, a tied head, a buffer, a norm."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.up = nn.Linear(4, 6)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.to(dtype)


def low_rank(rows: int = 6, columns: int = 4, rank: int = 2, seed: int = 1) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    )


def both_kinds() -> WeightDelta:
    return WeightDelta({"up.weight": low_rank(), "up.bias": Dense(torch.linspace(-1, 1, 6))})


def bits(root: nn.Module) -> dict[str, bytes]:
    return {
        name: parameter.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, parameter in root.named_parameters()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_applied_adds_in_float32_and_takes_back_every_bit(dtype):
    net = Net(dtype)
    before, identities = bits(net), {name: id(p) for name, p in net.named_parameters()}
    weight = net.up.weight.detach().clone()
    delta = both_kinds()
    wide = torch.promote_types(dtype, torch.float32)
    expected = (weight.to(wide) + delta.terms["up.weight"].dense()).to(dtype)
    with delta.applied(net) as inside:
        assert inside is net
        assert torch.equal(net.up.weight, expected)
        assert not torch.equal(net.up.weight, weight)
    assert bits(net) == before
    assert {name: id(p) for name, p in net.named_parameters()} == identities


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(min_value=1e-6, max_value=1e6), seed=st.integers(0, 1000))
def test_taken_back_exactly_at_any_scale(scale, seed):
    net = Net(torch.bfloat16)
    before = bits(net)
    with WeightDelta({"up.weight": low_rank(seed=seed)}).scaled(scale).applied(net):
        pass
    assert bits(net) == before


def test_special_values_come_back_with_their_bits():
    net = Net()
    with torch.no_grad():
        net.up.weight[0] = torch.tensor([-0.0, float("inf"), float("nan"), 1e-45])
    before = bits(net)
    with both_kinds().applied(net):
        assert bits(net) != before
    assert bits(net) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_taken_back_when_the_block_fails(error):
    net = Net()
    before = bits(net)
    with pytest.raises(error), both_kinds().applied(net):
        raise error
    assert bits(net) == before


def test_taken_back_when_applying_fails_half_way(monkeypatch):
    net = Net()
    before = bits(net)
    seen = []

    def dense(self, device="cpu"):
        seen.append(bits(net) != before)
        raise MemoryError

    monkeypatch.setattr(LowRank, "dense", dense)  # up.bias comes first, up.weight then fails
    with pytest.raises(MemoryError), both_kinds().applied(net):
        pass
    assert seen == [True]
    assert bits(net) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_in_every_grad_mode_and_leaves_flags_alone(mode):
    net = Net()
    net.up.bias.requires_grad_(False)
    before = bits(net)
    with mode(), both_kinds().applied(net):
        assert bits(net) != before
    assert bits(net) == before
    assert [p.requires_grad for p in (net.up.weight, net.up.bias)] == [True, False]
    net.up(torch.ones(1, 4)).sum().backward()
    assert net.up.weight.grad is not None


def test_works_on_weights_made_in_inference_mode():
    with torch.inference_mode():
        net = Net()
    before = bits(net)
    with both_kinds().applied(net):
        assert bits(net) != before
    assert bits(net) == before


def test_entered_in_inference_mode_and_left_outside_of_it():
    net = Net()
    before = bits(net)
    manager = both_kinds().applied(net)
    with torch.inference_mode():
        manager.__enter__()
    assert bits(net) != before
    manager.__exit__(None, None, None)
    assert bits(net) == before


def test_blocks_nest():
    net = Net()
    before = bits(net)
    one, two = WeightDelta({"up.weight": low_rank(seed=1)}), WeightDelta({"up.weight": low_rank(seed=2)})
    with one.applied(net):
        middle = bits(net)
        with two.applied(net):
            nested = net.up.weight.detach().clone()
        assert bits(net) == middle
    assert bits(net) == before
    with one.then(two).applied(net):
        assert torch.allclose(net.up.weight, nested, atol=1e-5)


@pytest.mark.parametrize("names", [["embed.weight"], ["head.weight"], ["embed.weight", "head.weight"]])
def test_a_tied_tensor_changes_once(names):
    net = Net()
    before = net.embed.weight.detach().clone()
    delta = WeightDelta({name: Dense(torch.ones(7, 4)) for name in names})
    with delta.applied(net):
        assert torch.equal(net.embed.weight, before + 1)
        assert net.head.weight is net.embed.weight
    assert torch.equal(net.embed.weight, before)


def test_tensors_tied_by_memory_change_once():
    net = Net()
    net.head.weight = nn.Parameter(net.embed.weight.detach())  # another Parameter, the same memory
    before = net.embed.weight.detach().clone()
    with WeightDelta({n: Dense(torch.ones(7, 4)) for n in ("embed.weight", "head.weight")}).applied(net):
        assert torch.equal(net.embed.weight, before + 1)
    assert torch.equal(net.embed.weight, before)


def test_everything_that_does_not_fit_is_named_and_nothing_is_changed():
    net = Net()
    net.count = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    before = bits(net)
    delta = WeightDelta(
        {
            "up.bias": Dense(torch.ones(6)),
            "up.weight": low_rank(4, 6),
            "down.weight": low_rank(),
            "count": Dense(torch.ones(2)),
            "embed.weight": Dense(torch.ones(7, 4)),
            "head.weight": Dense(torch.zeros(7, 4)),
        }
    )
    with pytest.raises(UserError) as caught, delta.applied(net):
        pass
    message = str(caught.value)
    assert "down.weight: the model has no such parameter" in message
    assert "up.weight: the model has (6, 4), the delta (4, 6)" in message
    assert "count: torch.int8" in message
    assert "head.weight: is the same tensor as embed.weight" in message
    assert "up.bias" not in message
    assert bits(net) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_delta_that_is_not_finite_is_refused(bad, tmp_path):
    delta = WeightDelta({"up.bias": Dense(torch.full((6,), bad)), "up.weight": low_rank()})
    net = Net()
    before = bits(net)
    assert not delta.is_finite
    assert both_kinds().is_finite
    with pytest.raises(UserError, match=r"not finite in up\.bias;"), delta.applied(net):
        pass
    with pytest.raises(UserError, match="not finite"):
        delta.save(tmp_path / "delta.safetensors")
    assert bits(net) == before


def test_overflow_of_the_dtype_is_refused_and_taken_back():
    net = Net(torch.float16)
    before = bits(net)
    delta = WeightDelta({"embed.weight": Dense(torch.ones(7, 4)), "up.bias": Dense(torch.full((6,), 1e6))})
    with pytest.raises(UserError, match=r"up\.bias overflows torch\.float16"), delta.applied(net):
        pass
    assert bits(net) == before


def test_then_adds_and_keeps_low_rank_where_it_can():
    one, two = (
        both_kinds(),
        WeightDelta({"up.weight": low_rank(rank=3, seed=5), "other": Dense(torch.ones(2))}),
    )
    both = one.then(two)
    term = both.terms["up.weight"]
    assert isinstance(term, LowRank)
    assert term.up.shape == (6, 5)
    assert torch.allclose(
        term.dense(), one.terms["up.weight"].dense() + two.terms["up.weight"].dense(), atol=1e-6
    )
    assert set(both.terms) == {"up.weight", "up.bias", "other"}
    dense = one.then(WeightDelta({"up.weight": Dense(torch.ones(6, 4))})).terms["up.weight"]
    assert torch.allclose(dense.dense(), one.terms["up.weight"].dense() + 1)
    with pytest.raises(UserError, match=r"up\.bias: terms of \(6,\) and \(3,\)"):
        one.then(WeightDelta({"up.bias": Dense(torch.ones(3))}))


def test_scaled_and_zero():
    delta = both_kinds()
    assert torch.allclose(
        delta.scaled(-2.0).terms["up.weight"].dense(), -2 * delta.terms["up.weight"].dense()
    )
    assert not delta.is_zero
    assert delta.scaled(0.0).is_zero
    assert WeightDelta.zero().is_zero
    assert WeightDelta.zero().then(delta).digest == delta.digest
    assert WeightDelta({"w": LowRank(torch.zeros(2, 1), torch.ones(1, 2))}).is_zero
    net = Net()
    before = bits(net)
    with WeightDelta.zero().applied(net):
        assert bits(net) == before


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(0, 12), seed=st.integers(0, 99))
def test_norms_are_those_of_the_product(rows, columns, rank, seed):
    term = low_rank(rows, columns, rank, seed)
    expected = float((term.up.double() @ term.down.double()).norm())
    assert term.norm() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_norm_of_terms_that_cancel_is_zero():
    delta = WeightDelta({"up.weight": low_rank(60, 40)})
    assert delta.then(delta.scaled(-1.0)).norms()["up.weight"] < 1e-12


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-4, 1e4))
def test_placebo_has_shape_rank_and_norm_but_another_direction(seed, scale):
    delta = WeightDelta({"a": low_rank(30, 20), "b": Dense(torch.randn(50))}).scaled(scale)
    random = placebo(delta, seed=seed)
    assert {n: {k: v.shape for k, v in t.parts.items()} for n, t in random.terms.items()} == {
        n: {k: v.shape for k, v in t.parts.items()} for n, t in delta.terms.items()
    }
    for name, norm in delta.norms().items():
        assert random.norms()[name] == pytest.approx(norm, rel=1e-5)
        one, two = delta.terms[name].dense().flatten(), random.terms[name].dense().flatten()
        assert abs(float(torch.cosine_similarity(one, two, dim=0))) < 0.8
    assert torch.linalg.matrix_rank(random.terms["a"].dense()) == 2


def test_placebo_of_a_delta_drawn_from_the_same_seed_is_another_delta():
    delta = WeightDelta({"a": low_rank(30, 20, seed=1)})
    one, two = (d.terms["a"].dense().flatten() for d in (delta, placebo(delta, seed=1)))
    assert abs(float(torch.cosine_similarity(one, two, dim=0))) < 0.5


def test_placebo_depends_on_its_seed_alone():
    delta = both_kinds()
    state = torch.get_rng_state()
    assert placebo(delta, seed=3).digest == placebo(delta, seed=3).digest != placebo(delta, seed=4).digest
    assert torch.equal(torch.get_rng_state(), state)
    assert placebo(delta.scaled(0.0), seed=1).is_zero


def test_frozen_against_later_changes_of_the_tensors_given():
    up, down = torch.ones(6, 1), torch.ones(1, 4)
    terms = {"up.weight": LowRank(up, down)}
    delta = WeightDelta(terms)
    digest = delta.digest
    up.zero_()
    terms["up.bias"] = Dense(torch.ones(6))
    assert delta.digest == digest
    with pytest.raises(TypeError):
        delta.terms["x"] = Dense(torch.ones(1))
    with pytest.raises(AttributeError):
        delta.terms = {}
    with pytest.raises(ValueError, match="not factors"):
        LowRank(torch.ones(6, 2), torch.ones(1, 4))


def test_terms_keep_no_graph():
    up = torch.ones(6, 1, requires_grad=True)
    assert not LowRank(up * 2, torch.ones(1, 4)).up.requires_grad


def test_saved_and_loaded(tmp_path):
    delta = both_kinds().then(WeightDelta({"odd:name": Dense(torch.tensor(2.5))}))
    path = delta.save(tmp_path / "sub" / "delta.safetensors")
    loaded = WeightDelta.load(path)
    assert loaded.digest == delta.digest
    assert isinstance(loaded.terms["up.weight"], LowRank)
    assert loaded.terms["odd:name"].shape == ()
    first = path.read_bytes()
    assert delta.save(path).read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["delta.safetensors"]
    empty = WeightDelta.zero().save(tmp_path / "zero.safetensors")
    assert WeightDelta.load(empty).is_zero


def test_digest_sees_names_kinds_and_bits():
    delta = both_kinds()
    value = delta.terms["up.weight"].dense()
    variants = [
        delta,
        delta.scaled(1.0000001),
        WeightDelta({"up.weight": Dense(value)}),
        WeightDelta({"up.weight": Dense(value.T)}),
        WeightDelta({"other": Dense(value)}),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)


ELSEWHERE = """
import sys
import torch
from gapeval_lab.delta import WeightDelta, fingerprint
torch.manual_seed(0)
print(fingerprint(torch.nn.Linear(5, 3).bfloat16()))
print(WeightDelta.load(sys.argv[1]).digest)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A stored delta; and what two processes with other hash seeds print of a layer and of it."""
    path = WeightDelta({"w": LowRank(torch.ones(2, 1), torch.arange(3.0)[None])}).save(
        tmp_path_factory.mktemp("stored") / "delta"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", ELSEWHERE, str(path)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout.splitlines()
        for seed in ("1", "2")
    ]
    return path, *(set(lines) for lines in zip(*printed, strict=True))


def test_the_digest_is_the_same_in_another_process_and_for_any_file(elsewhere, tmp_path):
    """The address of a delta: a golden value, since stored deltas are found by it."""
    path, _, digests = elsewhere
    address = "eedb6eecdba7a9ae78ca5aab4ba730f5c4572554e6f67b291e99bc44b4a9a27b"
    assert digests == {address}
    assert WeightDelta.load(path).digest == read_head(path).address == address
    again = WeightDelta.load(path).save(tmp_path / "other", origin=Origin("a" * 64, "text"))
    assert again.read_bytes() != path.read_bytes()
    assert WeightDelta.load(again).digest == address


def test_the_head_says_what_the_file_holds(tmp_path):
    delta = both_kinds().then(WeightDelta({"other.weight": low_rank(rank=5)}))
    origin = Origin("ab" * 32, "image", (Part("cd" * 32, -0.5, "a run"),))
    head = read_head(delta.save(tmp_path / "delta", origin=origin))
    assert (head.address, head.origin) == (delta.digest, origin)
    assert head.norm == pytest.approx(delta.norm(), rel=1e-5)
    assert head.norm**2 == pytest.approx(sum(norm**2 for norm in delta.norms().values()), rel=1e-5)
    assert {name: (term.shape, term.rank) for name, term in head.terms.items()} == {
        "other.weight": ((6, 4), 5),
        "up.bias": ((6,), None),
        "up.weight": ((6, 4), 2),
    }
    assert head.ranks == "2 to 5, dense"
    assert read_head(WeightDelta.zero().save(tmp_path / "zero")).ranks == "none"


def test_a_file_without_an_origin_is_read_and_fits_all_weights(tmp_path):
    """As files were written before they had one."""
    tensors = {"w:dense": torch.ones(2)}
    note = {"format": "gapeval-lab-delta-1", "digest": WeightDelta({"w": Dense(torch.ones(2))}).digest}
    save_file(tensors, tmp_path / "delta", metadata={"gapeval_lab": json.dumps(note)})
    head = read_head(tmp_path / "delta")
    assert (head.origin, head.norm) == (Origin(), None)
    require_weights(head, "any", path=tmp_path, fix="")
    assert WeightDelta.load(tmp_path / "delta").digest == head.address


@pytest.mark.parametrize(
    ("note", "tensors"),
    [
        ("{", {"w:dense": torch.ones(2)}),
        ("[]", {"w:dense": torch.ones(2)}),
        ('{"format": "gapeval-lab-delta-2", "digest": "0"}', {"w:dense": torch.ones(2)}),
        ('{"format": "gapeval-lab-delta-1"}', {"w:dense": torch.ones(2)}),
        (
            '{"format": "gapeval-lab-delta-1", "digest": "0", "origin": {"who": 1}}',
            {"w:dense": torch.ones(2)},
        ),
        ('{"format": "gapeval-lab-delta-1", "digest": "0"}', {"w": torch.ones(2)}),
        ('{"format": "gapeval-lab-delta-1", "digest": "0"}', {"w:up": torch.ones(2, 1)}),
        ('{"format": "gapeval-lab-delta-1", "digest": "0"}', {"w:down": torch.ones(2, 1)}),
        (
            '{"format": "gapeval-lab-delta-1", "digest": "0"}',
            {"w:up": torch.ones(2, 1), "w:down": torch.ones(2, 3)},
        ),
    ],
)
def test_a_head_that_is_none_is_one_message(note, tensors, tmp_path):
    save_file(tensors, tmp_path / "delta", metadata={"gapeval_lab": note})
    with pytest.raises(UserError, match="no weight delta of this version"):
        WeightDelta.load(tmp_path / "delta")


def test_a_file_cut_short_is_refused_by_its_head_alone(tmp_path):
    path = both_kinds().save(tmp_path / "delta")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot read"):
        read_head(path)


def test_check_changes_nothing_and_says_what_does_not_fit():
    net = Net()
    before = bits(net)
    both_kinds().check(net)
    with pytest.raises(UserError, match=r"up\.weight: the model has \(6, 4\), the delta \(4, 6\)"):
        WeightDelta({"up.weight": low_rank(4, 6)}).check(net)
    with pytest.raises(UserError, match="not finite"):
        both_kinds().scaled(float("inf")).check(net)
    assert bits(net) == before


def test_files_that_are_no_deltas_are_refused(tmp_path):

    with pytest.raises(UserError, match="cannot read"):
        WeightDelta.load(tmp_path / "missing.safetensors")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot read"):
        WeightDelta.load(junk)
    save_file({"w": torch.ones(2)}, junk)
    with pytest.raises(UserError, match="no weight delta of this version"):
        WeightDelta.load(junk)
    path = both_kinds().save(tmp_path / "delta.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="does not match its digest"):
        WeightDelta.load(path)


def test_fingerprint_sees_every_bit_name_shape_and_dtype():
    reference = fingerprint(Net())
    assert fingerprint(Net()) == reference
    changed = Net()
    with torch.no_grad():
        changed.up.bias.view(torch.int32)[2] ^= 1
    buffered = Net()
    buffered.table[1] = 5
    signed = Net()
    with torch.no_grad():
        signed.up.bias[0] = 0.0
    negative = Net()
    with torch.no_grad():
        negative.up.bias[0] = -0.0
    renamed = Net()
    renamed.down = renamed.up
    del renamed.up
    models = (changed, buffered, signed, negative, renamed, Net(torch.bfloat16), Net(torch.float64))
    prints = [reference, *(fingerprint(net) for net in models)]
    assert len(set(prints)) == len(prints)


def test_fingerprint_does_not_depend_on_memory_layout_or_tying():
    net, untied = Net(), Net()
    untied.head.weight = nn.Parameter(untied.embed.weight.detach().clone())
    net.up.weight = nn.Parameter(net.up.weight.detach().T.contiguous().T)
    assert not net.up.weight.is_contiguous()
    assert fingerprint(net) == fingerprint(untied) == fingerprint(Net())


def test_fingerprint_tells_an_edit_and_its_end():
    net = Net(torch.bfloat16)
    before = fingerprint(net)
    with both_kinds().applied(net):
        assert fingerprint(net) != before
    assert fingerprint(net) == before


def test_fingerprint_is_the_same_in_another_process(elsewhere):
    torch.manual_seed(0)
    assert elsewhere[1] == {fingerprint(nn.Linear(5, 3).bfloat16())}
