"""How weights are brought into memory: the settings that families in Hugging Face format share.

Light to import; `loading` does what they say.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

_IN_SETTINGS: Final = ("attention", "device_map", "quantise", "compile")


class LoadOptions(BaseModel):
    """Which weights, and how they lie in memory.

    Attributes:
        weights: a folder in Hugging Face format, or a hub id (which alone uses the network).
        dtype: of weights and arithmetic.
        device: "auto" is the first CUDA device if there is one, else the CPU.
        attention: the implementation of attention.
        device_map: how one model is spread over several GPUs; None: it lies whole on `device`.
        quantise: hold the weights in 8 or 4 bits by bitsandbytes. Needs CUDA; such a model is measured, and
            nothing can be written into it.
        compile: answer through torch.compile; the first answers then take longer. Losses and interventions
            run the model as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(min_length=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    quantise: Literal["8bit", "4bit"] | None = None
    compile: bool = False

    def of_answers(self) -> dict[str, Any]:
        """The options that last digits of answers depend on, where they are not the default."""
        fields = type(self).model_fields
        chosen = {name: getattr(self, name) for name in _IN_SETTINGS}
        return {name: value for name, value in chosen.items() if value != fields[name].default}
