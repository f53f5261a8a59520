"""The settings of a UMM behind an OpenAI-style endpoint: one model that answers, one that draws, or both.

Light to import, so that a recipe is checked in no time; `load` brings in the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from gapeval_lab.endpoint import ChatEndpoint

if TYPE_CHECKING:
    from gapeval_lab.models.openai_loaded import LoadedOpenAI


class OpenAIChat(ChatEndpoint):
    """Which models of an endpoint, and how they are asked. Weights are out of reach: nothing is edited.

    The seed of a prompt is sent along, and endpoints need not honour it: with some, the same prompt gives
    another answer in another run.

    Attributes:
        chat_model: answers in text, about pictures too; null: the understanding direction is N/A.
        image_model: draws, and edits the pictures of a prompt; null: the generation direction is N/A.
        name: what the model is called in tables; null: the names of its parts.
        system: a system prompt for answers.
        send_seed: false for endpoints that refuse the field in chat completions.
        image_size, image_quality: as the endpoint calls them; null sends none.
        ask_base64: ask for `response_format: b64_json`; false for models that refuse the field and send
            base64 in any case.
        send_image_seed: send `seed` with drawings; many endpoints refuse the field.
        price_picture: of one drawing.
    """

    chat_model: str | None = Field(default=None, min_length=1)
    image_model: str | None = Field(default=None, min_length=1)
    name: str | None = Field(default=None, min_length=1)
    system: str | None = Field(default=None, min_length=1)
    send_seed: bool = True
    image_size: str | None = Field(default="1024x1024", pattern=r"^(\d+x\d+|auto)$")
    image_quality: str | None = Field(default=None, min_length=1)
    ask_base64: bool = True
    send_image_seed: bool = False
    price_picture: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if self.chat_model is None and self.image_model is None:
            raise ValueError("needs chat_model, image_model, or both")
        return self

    @property
    def price_fields(self) -> str:
        """The settings that say what a call costs."""
        asked = ["price_in and price_out"] if self.chat_model is not None else []
        return " and ".join(asked + (["price_picture"] if self.image_model is not None else []))

    @property
    def priced(self) -> bool:
        """Whether the cost of every call can be told."""
        told = self.chat_model is None or (self.price_in is not None and self.price_out is not None)
        return told and (self.image_model is None or self.price_picture is not None)

    def load(self) -> LoadedOpenAI:
        """Check that there is a key; asks the endpoint nothing.

        Raises:
            UserError: the environment holds no key.
        """
        from gapeval_lab.models.openai_loaded import LoadedOpenAI

        self.key()
        return LoadedOpenAI(self)
