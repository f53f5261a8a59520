"""Where EasyEdit computes something else than the papers say, as settings of the native methods.

    delta, v_init, k*    as in values.py and rome.py
    j = 0                the question alone; j = 1, 2, ... the question behind a context

Each default is the papers'. With `compat: easyedit` all of them are EasyEdit's (0.0.1.dev0). To have its
ROME to the last digits, other settings must be its own, too:

    essence: ["{subject} is a"], kl_order: edited_original, early_stop: 0.05, value_at: token, and one
    update less than its `v_num_grad_steps`, since its last step computes a loss and no update.

Its `v_loss_layer` needs no setting: it is read and changes nothing.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, model_validator

EASYEDIT: Final = {
    "target_loss": "mean",
    "decay_power": 1,
    "initial": "question",
    "kl_at": "token",
    "divisor": "question",
    "inverse": "float32",
}


class Compat(BaseModel):
    """One field per difference; the word `easyedit` stands for all of EasyEdit's.

    Attributes:
        target_loss: -log P of the target is the sum over its tokens, or their mean.
        decay_power: p in the term weight_decay * |delta|^p / |v_init|^2.
        initial: v_init is the mean over the contexts, or that of the question alone (j = 0).
        kl_at: the divergence is taken at the essence prompt's end, or at the fact's token in it.
        divisor: k in Lambda = delta* / ((C^-1 k*)^T k): the mean k*, or that of the question alone.
        inverse: precision in which ROME solves with C.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_loss: Literal["sum", "mean"] = "sum"
    decay_power: Literal[1, 2] = 2
    initial: Literal["contexts", "question"] = "contexts"
    kl_at: Literal["end", "token"] = "end"
    divisor: Literal["contexts", "question"] = "contexts"
    inverse: Literal["float64", "float32"] = "float64"

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, str) and given != "easyedit":
            raise ValueError(f"'{given}' is unknown; write 'easyedit', or a mapping of single differences")
        return dict(EASYEDIT) if given == "easyedit" else given
