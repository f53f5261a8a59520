"""What every UMM adapter promises, as tests. Use it for your own:

    class TestMine(UMMContract):            # or TrainableUMMContract, with loss and backbone
        @pytest.fixture
        def umm(self):
            return load_mine()

Asks little questions and looks at the form of what comes back, never at whether it is right.
"""

import json
import random
import re
from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import UMM
from gapeval_lab.items import Direction, Example, Prompt, Response, image_digest

Answer = str | Image.Image


def noise_picture(seed: int, size: int = 32) -> Image.Image:
    """A picture of coloured noise."""
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


class UMMContract:
    """Promises of every adapter. Subclasses give the fixture `umm`."""

    texts: tuple[str, ...] = (
        "a red square .",
        "tell me the colour of the thing to the left of the blue ring .",
        "blue ?",
        "a green cross and a red square",
    )
    pictures: bool = True
    """Whether prompts may hold pictures (a model may be text to picture only)."""

    @pytest.fixture
    def umm(self) -> UMM:
        raise NotImplementedError("give the adapter to test as the fixture `umm`")

    def prompts(self) -> list[Prompt]:
        """Prompts of different lengths, some with the same picture."""
        plain = [Prompt(text) for text in self.texts]
        if not self.pictures:
            return plain
        shown = [Prompt(text, (noise_picture(7),)) for text in self.texts[:2]]
        return [shown[0], *plain, shown[1]]

    @staticmethod
    def respond(umm: UMM, direction: Direction, prompts: list[Prompt], seeds: list[int]) -> list[Answer]:
        if direction is Direction.UNDERSTANDING:
            return list(umm.answer(prompts, seeds=seeds))
        return list(umm.draw(prompts, seeds=seeds))

    @staticmethod
    def plain(answers: list[Answer]) -> list[str]:
        """Answers as comparable values."""
        return [one if isinstance(one, str) else image_digest(one) for one in answers]

    def test_it_is_a_umm(self, umm: UMM) -> None:
        assert isinstance(umm, UMM)
        assert umm.name
        assert umm.directions
        assert umm.directions <= frozenset(Direction)

    def test_settings_are_json_and_do_not_change(self, umm: UMM) -> None:
        before = json.dumps(umm.settings(), sort_keys=True)
        for direction in sorted(umm.directions):
            self.respond(umm, direction, self.prompts()[:1], [0])
        assert json.dumps(umm.settings(), sort_keys=True) == before
        assert json.loads(before) == umm.settings()

    def test_nothing_in_nothing_out(self, umm: UMM) -> None:
        for direction in sorted(umm.directions):
            assert self.respond(umm, direction, [], []) == []

    def test_a_direction_that_it_lacks_is_refused(self, umm: UMM) -> None:
        for direction in frozenset(Direction) - umm.directions:
            with pytest.raises(UserError, match=re.escape(umm.name)):
                self.respond(umm, direction, [Prompt(self.texts[0])], [0])

    def test_one_answer_each_of_the_right_kind(self, umm: UMM) -> None:
        prompts = self.prompts()
        for direction in sorted(umm.directions):
            answers = self.respond(umm, direction, prompts, list(range(len(prompts))))
            assert len(answers) == len(prompts)
            for answer in answers:
                if direction is Direction.UNDERSTANDING:
                    assert isinstance(answer, str)
                else:
                    assert isinstance(answer, Image.Image)
                    assert answer.mode == "RGB"
                # What is answered can be recorded as a response.
                text, image = (answer, None) if isinstance(answer, str) else (None, answer)
                Response("item", direction, text=text, picture=image)

    def test_batching_and_order_change_nothing(self, umm: UMM) -> None:
        prompts = self.prompts()
        seeds = [7 * index + 1 for index in range(len(prompts))]
        order = random.Random(0).sample(range(len(prompts)), len(prompts))
        for direction in sorted(umm.directions):
            together = self.plain(self.respond(umm, direction, prompts, seeds))
            single = [
                self.plain(self.respond(umm, direction, [prompt], [seed]))[0]
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            shuffled = self.plain(
                self.respond(umm, direction, [prompts[i] for i in order], [seeds[i] for i in order])
            )
            assert single == together
            assert shuffled == [together[i] for i in order]

    def test_global_random_state_is_neither_read_nor_changed(self, umm: UMM) -> None:
        prompts = self.prompts()[:2]
        for direction in sorted(umm.directions):
            given = []
            for seed in (1, 2):
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
                states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
                given.append(self.plain(self.respond(umm, direction, prompts, [5, 6])))
                assert states == (
                    random.getstate(),
                    np.random.get_state()[1].tolist(),
                    torch.get_rng_state().tolist(),
                )
            assert given[0] == given[1]


class TrainableUMMContract(UMMContract):
    """Promises of adapters whose weights can be reached: losses and the backbone."""

    answers: tuple[str, ...] = ("red", "a blue ring and a cross", "green square")
    questions: tuple[str, ...] = (
        "the colour of the ring ?",
        "the thing ?",
        "tell me of the cross , its colour .",
    )

    trained: Mapping[Direction, str] = {direction: "mlp_down" for direction in Direction}
    """A site whose weights each direction depends on."""

    def weight(self, umm: UMM, direction: Direction) -> torch.nn.Parameter:
        backbone = umm.backbone()
        path = backbone.sites.path(self.trained[direction], 0)
        return backbone.root.get_submodule(path).get_parameter("weight")

    def examples(self, direction: Direction) -> list[Example]:
        told: list[Answer] = [*self.answers]
        drawn: list[Answer] = [noise_picture(10 + index) for index in range(len(told))]
        answers = told if direction is Direction.UNDERSTANDING else drawn
        return [Example(prompt, answer) for prompt, answer in zip(self.prompts(), answers, strict=False)]

    def test_losses_are_positive_and_do_not_depend_on_the_batch(self, umm: UMM) -> None:
        for direction in sorted(umm.directions):
            examples = self.examples(direction)
            with torch.no_grad():
                together = umm.loss(examples, direction)
                single = torch.cat([umm.loss([example], direction) for example in examples])
                backwards = umm.loss(examples[::-1], direction).flip(0)
            assert together.shape == (len(examples),)
            assert bool((together > 0).all())
            torch.testing.assert_close(single, together, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(backwards, together, rtol=1e-4, atol=1e-4)

    def test_losses_depend_on_answer_and_question(self, umm: UMM) -> None:
        for direction in sorted(umm.directions):
            first, second, *_ = self.examples(direction)
            crossed = [Example(first.prompt, second.answer), Example(second.prompt, first.answer)]
            with torch.no_grad():
                straight, swapped = umm.loss([first, second], direction), umm.loss(crossed, direction)
            assert bool((straight != swapped.flip(0)).all())

    def test_losses_give_gradients_to_the_trunk_and_leave_none_behind(self, umm: UMM) -> None:
        for direction in sorted(umm.directions):
            weight = self.weight(umm, direction)
            (gradient,) = torch.autograd.grad(umm.loss(self.examples(direction), direction).sum(), weight)
            assert gradient.shape == weight.shape
            assert float(gradient.abs().sum()) > 0
            assert weight.grad is None

    def test_sites_are_modules_of_the_root(self, umm: UMM) -> None:
        backbone = umm.backbone()
        assert set(backbone.sites.templates) >= {"block", "attn_out", "mlp_up", "mlp_gate", "mlp_down"}
        for site, layer in product(backbone.sites.templates, range(backbone.sites.layers)):
            module = backbone.root.get_submodule(backbone.sites.path(site, layer))
            if site in ("attn_out", "mlp_down"):
                weight = module.get_parameter("weight")
                assert weight.shape[1 if backbone.sites.transposed else 0] == backbone.hidden_size

    def test_encoded_questions_are_left_padded_and_located(self, umm: UMM) -> None:
        encoded = umm.backbone().encode(self.questions, None)
        assert encoded.input_ids.shape == encoded.attention_mask.shape == encoded.labels.shape
        assert bool((encoded.labels == -100).all())
        assert bool((encoded.attention_mask.diff(dim=1) >= 0).all())  # padding comes first
        assert bool((encoded.attention_mask[:, -1] == 1).all())
        for row, question in enumerate(self.questions):
            text, spans = encoded.texts[row], encoded.offsets[row]
            assert question in text
            assert len(spans) == encoded.input_ids.shape[1]
            start = text.index(question)
            covered = {place for left, right in spans for place in range(left, right)}
            letters = {start + i for i, letter in enumerate(question) if not letter.isspace()}
            assert letters <= covered
            for place, real in enumerate(encoded.attention_mask[row].tolist()):
                assert real or spans[place] == (0, 0)

    def test_encoded_targets_are_labelled_and_nothing_else_is(self, umm: UMM) -> None:
        backbone = umm.backbone()
        bare, encoded = backbone.encode(self.questions, None), backbone.encode(self.questions, self.answers)
        for row, target in enumerate(self.answers):
            labels, ids = encoded.labels[row], encoded.input_ids[row]
            marked = labels != -100
            assert bool((labels[marked] == ids[marked]).all())
            assert bool(marked[-int(marked.sum()) :].all())  # the target ends the sequence
            question = ids[(encoded.attention_mask[row] == 1) & ~marked]
            assert question.tolist() == bare.input_ids[row][bare.attention_mask[row] == 1].tolist()
            spans = [span for span, mark in zip(encoded.offsets[row], marked.tolist(), strict=True) if mark]
            left = min(start for start, _ in spans)
            right = max(end for _, end in spans)
            assert encoded.texts[row][left:right].strip() == target
            assert encoded.texts[row].startswith(bare.texts[row])

    def test_logits_do_not_depend_on_padding_and_agree_with_the_loss(self, umm: UMM) -> None:
        backbone = umm.backbone()
        with torch.no_grad():
            encoded = backbone.encode(self.questions, self.answers)
            logits = backbone.logits(encoded)
            assert logits.shape[:2] == encoded.input_ids.shape
            examples = [Example(Prompt(q), a) for q, a in zip(self.questions, self.answers, strict=True)]
            losses = umm.loss(examples, Direction.UNDERSTANDING)
            for row, (question, target) in enumerate(zip(self.questions, self.answers, strict=True)):
                alone = backbone.logits(backbone.encode([question], [target]))[0]
                torch.testing.assert_close(logits[row, -len(alone) :], alone, rtol=1e-3, atol=1e-3)
                marked = encoded.labels[row, 1:] != -100
                terms = logits[row, :-1][marked].float().log_softmax(-1)
                picked = terms.gather(1, encoded.labels[row, 1:][marked][:, None])
                # The loss may count an end-of-answer token more, never less.
                assert float(-picked.sum()) <= float(losses[row]) + 1e-3

    def test_weights_of_the_backbone_are_the_ones_that_answer(self, umm: UMM) -> None:
        for direction in sorted(umm.directions):
            weight = self.weight(umm, direction)
            kept = weight.detach().clone()
            examples = self.examples(direction)
            with torch.no_grad():
                before = umm.loss(examples, direction)
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight))
                changed = umm.loss(examples, direction)
                weight.copy_(kept)
                after = umm.loss(examples, direction)
            assert bool((changed != before).all())
            assert torch.equal(after, before)

    def test_answering_leaves_the_model_alone(self, umm: UMM) -> None:
        root = umm.backbone().root
        weights = {name: value.detach().clone() for name, value in root.named_parameters()}
        flags = {name: value.requires_grad for name, value in root.named_parameters()}
        modes = [module.training for module in root.modules()]
        for direction in sorted(umm.directions):
            self.respond(umm, direction, self.prompts()[:2], [0, 1])
        assert all(torch.equal(value, weights[name]) for name, value in root.named_parameters())
        assert {name: value.requires_grad for name, value in root.named_parameters()} == flags
        assert [module.training for module in root.modules()] == modes
