"""The contracts of plug-ins, on one screen, and the two tables a model hands over.

Who owns what: the adapter owns batching and templates; the caller owns seeds and files. Lists go
in, lists of the same length come out, in the same order. Nothing here imports torch at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from gapeval_lab.errors import UserError
from gapeval_lab.items import Direction, Example, Fact, Item, Prompt, Response, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image
    from torch import Tensor, nn

    from gapeval_lab.delta import WeightDelta

Log = Callable[[str, float, int], None]
"""`log(name, value, step)`: how an intervention reports a curve while it fits."""


Watch = Callable[[int], None]
"""`watch(updates)`: called while an intervention trains, see `Training`."""

Side = Literal["text", "image", "both"]

ADAPTER, CHECKPOINT = "adapter", "checkpoint.pt"
"""What training leaves in `Training.folder`: a folder in its library's format, and the state on the way."""

ENGINE_LOG = "engine.txt"
"""What an engine of others' making printed, in `Training.folder`."""


@dataclass(frozen=True)
class Lesson:
    """One training example in one direction, and whom or what it is about (a fact's id, a subject)."""

    about: str
    direction: Direction
    example: Example


@dataclass(frozen=True)
class Training:
    """What a run lends to interventions that train, beside the facts themselves.

    Attributes:
        lessons: the facts as examples, in every wording that may be trained on, both directions.
        replay: what the model knows already and no probe asks about.
        anchors: questions of the domain that name nobody whom a probe asks about: what is answered to
            them should stay as it is.
        folder: a folder of this run: checkpoints lie there and by-products stay in it, such as an
            adapter in its library's own format. None: nothing is kept.
        watch: called as `watch(0)` before the first update and `watch(n)` after the n-th, with the
            model in evaluation mode and as it is then; after a resumption from the resumed update on.
    """

    lessons: Sequence[Lesson] = ()
    replay: Sequence[Lesson] = ()
    anchors: Sequence[str] = ()
    folder: Path | None = None
    watch: Watch | None = None


def side_of(direction: str) -> Side:
    """The side of an intervention's `direction`: what is neither "text" nor "image" is "both"."""
    return "text" if direction == "text" else "image" if direction == "image" else "both"


@dataclass(frozen=True)
class Sites:
    """Where things are in one model: named path templates, from the root module.

    Attributes:
        templates: site name -> module path with one `{}` for the layer; the field's names are
            `block`, `attn_q`, `attn_k`, `attn_v`, `attn_out`, `mlp_down`, `mlp_up`, `mlp_gate`. E.g.
            {"mlp_down": "model.language_model.layers.{}.mlp.down_proj"}. Two are there once, without
            `{}`: `final_norm`, after the last block, and `head`, which gives the text logits.
        layers: number of layers; valid layers are 0 to layers - 1.
        transposed: True where weights are stored (in, out), as GPT-2's Conv1D does; stated, since
            a square matrix cannot tell.
    """

    templates: Mapping[str, str]
    layers: int
    transposed: bool = False

    def path(self, site: str, layer: int) -> str:
        """The module path of a site at a layer.

        Raises:
            UserError: unknown site, or layer out of range.
        """
        if site not in self.templates:
            raise UserError(f"site: '{site}' is unknown; this model has {', '.join(self.templates)}")
        if not 0 <= layer < self.layers:
            raise UserError(f"layer: {layer} is out of range; this model has 0 to {self.layers - 1}")
        return self.templates[site].format(layer)


@dataclass(frozen=True)
class Encoded:
    """Token ids of a batch of questions as the model is really asked them, template included.

    Attributes:
        input_ids, attention_mask: (batch, length), left-padded.
        labels: (batch, length); the target's ids where a target token stands, else -100.
        texts: the rendered strings; offsets: per sequence, one (start, end) character span into
            `texts` per position (padding and specials have (0, 0)).
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    texts: list[str]
    offsets: list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Drawing:
    """A batch of drawing prompts with the pictures they are to give.

    Attributes:
        prompt: the prompts as the model is really asked them; no labels.
        codes: (batch, codes) the pictures, in the words of the model's own image tokenizer.
    """

    prompt: Encoded
    codes: Tensor


@dataclass(frozen=True)
class Backbone:
    """The language trunk of a UMM, laid open for interventions.

    Attributes:
        root: owns every live weight; paths of `sites` and names of a delta start here.
        sites: see `Sites`.
        hidden_size: width of the residual stream.
        encode: (questions, targets or None) -> Encoded. Text-only questions. With targets, each is
            appended as the model would answer it.
        logits: Encoded -> (batch, length, vocabulary) next-token logits, differentiable.
        tokenizer: the tokenizer itself, for engines that bring their own code.
        encode_drawings: (prompts, pictures) -> Drawing; None where the trunk draws nothing.
        drawing_loss: Drawing -> (batch,) nats, teacher-forced, differentiable. One sequence per row, in
            order: the prompt's positions, then the codes', so that positions in the prompt hold.
    """

    root: nn.Module
    sites: Sites
    hidden_size: int
    encode: Callable[[Sequence[str], Sequence[str] | None], Encoded]
    logits: Callable[[Encoded], Tensor]
    tokenizer: Any
    encode_drawings: Callable[[Sequence[str], Sequence[Image.Image]], Drawing] | None = None
    drawing_loss: Callable[[Drawing], Tensor] | None = None


@runtime_checkable
class UMM(Protocol):
    """A unified multimodal model. `directions` says what it can do; the rest is N/A, never 0."""

    name: str
    directions: frozenset[Direction]

    def answer(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[str]:
        """One text per prompt. Each prompt has its own seed, so batching changes nothing."""
        ...

    def draw(self, prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Image.Image]:
        """One RGB picture per prompt. Each prompt has its own seed, so batching changes nothing."""
        ...

    def loss(self, examples: Sequence[Example], direction: Direction) -> Tensor:
        """Teacher-forced negative log-likelihood of each answer, in nats: (batch,), differentiable."""
        ...

    def backbone(self) -> Backbone:
        """The trunk, for interventions."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything beside the weights that answers depend on (decoding, dtype, ...); JSON-able."""
        ...


@runtime_checkable
class Weightless(Protocol):
    """A UMM whose weights are out of reach: it is measured, and interventions are refused.

    Its `backbone` and, where it gives no likelihoods, its `loss` raise a UserError.
    """

    def identity(self) -> str:
        """What stands for the weights' fingerprint: a hash of all that tells it from others."""
        ...


class Asking(Protocol):
    """Asks prompts of one direction, and tells what comes back as it arrives."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        seeds: Sequence[int],
        arrived: Callable[[Mapping[int, str | Image.Image | Exception]], object],
    ) -> object:
        """`arrived` hears the index of a prompt and what it gave: its answer, or its error.

        All is told when this returns, and all that was finished when it raises. It may be called in another
        thread, never twice at a time.
        """
        ...


@runtime_checkable
class Arriving(Protocol):
    """A UMM whose answers come one by one and are dear, as those of an endpoint: each is kept at once."""

    def arriving(self, direction: Direction) -> Asking | None:
        """How prompts of a direction are asked; None where `answer` and `draw` do it."""
        ...


@runtime_checkable
class Sketchable(Protocol):
    """Settings of a model whose modules can be built without reading its weights."""

    def sketch(self) -> nn.Module:
        """The backbone's root as it would be, without weights (on torch's meta device)."""
        ...

    def sites_in(self, root: nn.Module) -> Sites:
        """The sites of such a root."""
        ...


@runtime_checkable
class Savable(Protocol):
    """A UMM that can also be written to disk."""

    def save(self, folder: Path) -> None:
        """Write the weights as they are now, and what is needed to load them, into an empty folder."""
        ...


@runtime_checkable
class Benchmark(Protocol):
    """A set of items with a name, a version and a content hash."""

    name: str
    version: str
    categories: tuple[str, ...]

    def items(self) -> list[Item]:
        """The items that the settings select, in a fixed order."""
        ...

    def training_texts(self) -> list[str]:
        """Questions of the benchmark's domain that are not items: for second moments."""
        ...

    def rehearsal(self) -> list[Lesson]:
        """What a model of this benchmark was taught, with its answers, none of them an item: for replay."""
        ...

    def illustrate(self, target: Mapping[str, Any]) -> Image.Image | None:
        """A picture that a target accepts; None where the benchmark cannot draw."""
        ...

    def content_hash(self) -> str:
        """SHA-256 over everything that any item holds."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Says right, wrong or not scored. Pure: no state, the same input gives the same verdict."""

    def __call__(self, pairs: Sequence[tuple[Item, Response]]) -> list[Verdict]:
        """One verdict per pair."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that verdicts depend on; JSON-able."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A judge that can tell before anything is asked whether it will be able to judge."""

    def check(self, items: Sequence[Item]) -> None:
        """Refuse what is sure to fail later, such as a key that is not there. Asks nobody.

        Raises:
            UserError: it cannot judge.
        """
        ...


@runtime_checkable
class Voting(Protocol):
    """A judge made of several voices: judges, or people. `decide(votes(pairs))` is what it says itself."""

    def votes(self, pairs: Sequence[tuple[Item, Response]]) -> dict[str, list[Verdict]]:
        """Whose voice -> one verdict per pair; None where there is none."""
        ...

    def decide(self, votes: Mapping[str, Sequence[Verdict]]) -> list[Verdict]:
        """One verdict per pair."""
        ...


@runtime_checkable
class Intervention(Protocol):
    """Frozen settings with one verb, and a look before it. Its fields are the hyperparameters, everywhere.

    Promise, tested for all: on return the model is bit-identical (same module objects, same
    requires_grad, same train mode), global random state is as it was, and the same seed gives
    the same delta. `direction` says which side it is given, see `side_of`.
    """

    @property
    def kind(self) -> Literal["edit", "inject"]:
        """What a run with it is called: an edit of weights, or an injection by training."""
        ...

    @property
    def direction(self) -> str:
        """The side that the intervention learns from: "text", "image", or some form of both."""
        ...

    def check(self, umm: UMM) -> None:
        """Refuse a model that the settings do not fit, before anything is measured.

        Raises:
            UserError: a site or a layer that the model does not have.
        """
        ...

    def fit(
        self,
        umm: UMM,
        facts: Sequence[Fact],
        *,
        seed: int,
        texts: Sequence[str],
        log: Log,
        cache: Path | None = None,
        training: Training | None = None,
    ) -> WeightDelta:
        """Compute the weight delta that writes the facts into the model.

        Args:
            umm: the model; unchanged on return.
            facts: what to write, in order.
            seed: all randomness comes from it.
            texts: questions of the domain, for second moments and replay.
            log: called as `log("loss/fact-id", value, step)`.
            cache: where statistics of the model may be kept, keyed by content; None: a place of the
                intervention's own choice.
            training: examples and services for interventions that train; others leave it alone.
        """
        ...


@runtime_checkable
class ReadsTexts(Protocol):
    """An intervention that cannot do without texts of the domain."""

    @property
    def needs_texts(self) -> bool:
        """Whether these settings need them."""
        ...


@runtime_checkable
class ReadsFiles(Protocol):
    """An intervention whose settings name files: another content is another run."""

    def content_hash(self) -> str:
        """A hash of everything that it reads.

        Raises:
            UserError: a file cannot be read.
        """
        ...
