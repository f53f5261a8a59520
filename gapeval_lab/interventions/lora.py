"""LoRA: new facts by training low-rank adapters, through text, through pictures, or both.

    W' = W + (alpha / r) B A        A (r, in), B (out, r); W stays frozen

After Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685); the
adapters are peft's own, so rank-stabilised scaling, DoRA and whatever else its LoraConfig holds are
at hand, and the adapter is left in peft's format. The result is a delta like any other: B A x scale
taken out of peft as a low-rank term, or, where the merged weight is no such product (DoRA), the
difference it makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from gapeval_lab.delta import Dense, LowRank, Term, WeightDelta
from gapeval_lab.errors import UserError
from gapeval_lab.interfaces import ADAPTER, UMM, Backbone, Log, Training
from gapeval_lab.interventions.trace import left_as_found, linear_weight
from gapeval_lab.interventions.training import TrainingSettings, train
from gapeval_lab.items import Fact
from gapeval_lab.validation import did_you_mean

OWN = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "target_modules": "sites and layers",
    "fan_in_fan_out": "the model's own table of sites",
    "layers_to_transform": "layers",
    "layers_pattern": "layers",
    "exclude_modules": "sites and layers",
}
"""Fields of peft's LoraConfig that settings of ours stand for."""

FOREIGN = {
    "modules_to_save": "trains whole modules; use the finetune method for that",
    "trainable_token_indices": "changes embeddings, which a low-rank delta does not hold",
    "target_parameters": "names parameters, not sites",
    "layer_replication": "adds layers to the model",
    "bias": "trains biases of the base model",
    "lora_bias": "adds biases that the model does not have",
    "inference_mode": "is for adapters that are not trained",
    "task_type": "is a matter of peft's wrappers",
    "base_model_name_or_path": "is filled in by the run",
}
"""Fields that cannot end as a weight delta, and why."""

INITS = (True, False, "gaussian", "orthogonal")  # the others change the base weights


class Lora(TrainingSettings):
    """LoRA's settings, beside those of training.

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r (alpha / sqrt(r) with rslora).
        dropout: of the adapters' inputs, while training.
        rslora: rank-stabilised scaling.
        dora: weight-decomposed adaptation; the delta is then dense.
        sites: names of the linear sites that get an adapter.
        layers: which layers; None is all.
        peft: further fields of peft's LoraConfig (rank_pattern, alpha_pattern, init_lora_weights, ...).
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0, allow_inf_nan=False)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rslora: bool = False
    dora: bool = False
    sites: tuple[str, ...] = Field(default=("mlp_up", "mlp_gate", "mlp_down"), min_length=1)
    layers: tuple[int, ...] | None = None
    peft: dict[str, Any] = {}

    def check(self, umm: UMM) -> None:
        """Refuse sites, layers and fields of peft's that do not fit."""
        backbone = umm.backbone()
        self._config(self._targets(backbone), transposed=backbone.sites.transposed)

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
        """Train adapters on the facts' lessons; see `Intervention.fit`.

        Leaves `adapter/` in the training's folder, in peft's format.

        Raises:
            UserError: a setting does not fit this model, a side has no lessons, or the loss diverged.
        """
        if not facts:
            raise UserError("facts: none were given; LoRA needs at least one")
        backbone = umm.backbone()
        targets = self._targets(backbone)
        config = self._config(targets, transposed=backbone.sites.transposed)
        with left_as_found(backbone.root), adapted(backbone.root, config, targets, seed=seed) as model:
            trained = {name: p for name, p in backbone.root.named_parameters() if p.requires_grad}
            train(
                umm,
                self,
                trained,
                loss=umm.loss,
                seed=seed,
                log=log,
                training=training,
            )
            if training is not None and training.folder is not None:
                save_adapter(model, training.folder / ADAPTER, base=umm.name)
            with torch.no_grad():
                terms = {
                    f"{path}.weight": _term(
                        backbone.root.get_submodule(path), transposed=backbone.sites.transposed
                    )
                    for path in targets
                }
        return WeightDelta(terms)

    def _targets(self, backbone: Backbone) -> list[str]:
        """Paths of the modules that get an adapter."""
        sites = backbone.sites
        layers = range(sites.layers) if self.layers is None else self.layers
        paths = [sites.path(site, layer) for layer in layers for site in self.sites]
        for path in paths:
            linear_weight(backbone.root, path, field="sites")
        return list(dict.fromkeys(paths))

    def _config(self, targets: Sequence[str], *, transposed: bool) -> Any:
        """peft's configuration.

        Raises:
            UserError: `peft` holds a field that is unknown, that a setting stands for, or that cannot
                end as a weight delta.
        """
        import dataclasses

        from peft import LoraConfig

        known = {field.name for field in dataclasses.fields(LoraConfig)}
        for name in self.peft:
            if name in OWN:
                raise UserError(f"peft.{name}: use the setting {OWN[name]} instead")
            if name in FOREIGN:
                raise UserError(f"peft.{name}: {FOREIGN[name]}; leave it out")
            if name not in known:
                hint = did_you_mean(name, known) or "; see peft's LoraConfig"
                raise UserError(f"peft.{name}: no field of LoraConfig{hint}")
        init = self.peft.get("init_lora_weights", True)
        if init not in INITS:
            raise UserError(
                f"peft.init_lora_weights: '{init}' changes the base weights, which are to stay as they are; "
                "use true, 'gaussian' or 'orthogonal'"
            )
        try:
            return LoraConfig(
                r=self.rank,
                lora_alpha=self.alpha,
                lora_dropout=self.dropout,
                use_rslora=self.rslora,
                use_dora=self.dora,
                target_modules=list(targets),
                fan_in_fan_out=transposed,
                **self.peft,
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"peft: {error}; mend the fields given there") from None


@contextlib.contextmanager
def adapted(root: nn.Module, config: Any, targets: Sequence[str], *, seed: int) -> Iterator[Any]:
    """The model with fresh adapters, as a PeftModel; the very same modules as before on leaving."""
    import warnings

    from peft import PeftModel

    held = [(path.rpartition("."), root.get_submodule(path)) for path in targets]
    attributes = set(vars(root))
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            # peft asks for an attribute that transformers is about to rename.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            model = PeftModel(root, config)
        yield model
    finally:
        for (parent, _, name), module in held:
            setattr(root.get_submodule(parent), name, module)
        for name in set(vars(root)) - attributes:
            delattr(root, name)


def _term(layer: Any, *, transposed: bool) -> Term:
    """What an adapted layer adds to its weight, (out, in) or transposed as the weight is stored."""
    (name,) = layer.active_adapters
    weight = layer.get_base_layer().weight
    if not layer.use_dora[name]:
        up = layer.lora_B[name].weight.detach().float() * layer.scaling[name]
        down = layer.lora_A[name].weight.detach().float()
        return LowRank(down.T, up.T) if transposed else LowRank(up, down)
    before = weight.detach().clone()
    layer.merge(adapter_names=[name])
    change = weight.detach().float() - before.float()
    layer.merged_adapters.clear()
    weight.copy_(before)  # subtracting what was added would not be exact
    return Dense(change)


def save_adapter(model: Any, folder: Path, *, base: str) -> None:
    """Write the adapter in peft's format, whole or not at all."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    fresh = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        fresh / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    (config,) = model.peft_config.values()
    values: Mapping[str, Any] = {**config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    (fresh / "adapter_config.json").write_text(
        json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n"
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
