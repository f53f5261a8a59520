"""What a diffusion pipeline can do, and which options it takes, without naming any family.

Both are read from the signature of its call and from the library's own tables of tasks.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gapeval_lab.errors import UserError
from gapeval_lab.models.diffusion import Diffusion

ARGUMENTS: Final[Mapping[str, str]] = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "true_guidance": "true_cfg_scale",
    "image_guidance": "image_guidance_scale",
    "strength": "strength",
    "negative": "negative_prompt",
}
"""Our options by the names that pipelines give them; `size` stands for two."""

_REFUSED: Final[Mapping[str, str]] = {
    "num_frames": "makes films",
    "mask_image": "needs a mask",
    "control_image": "needs a control picture",
    "controlnet_conditioning_scale": "needs a control picture",
}
"""Arguments of pipelines that no prompt of ours can be given to."""


def _takes(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(pipeline.__call__).parameters


def by_kind(pipeline: Any) -> tuple[Any, Any]:
    """The pipelines for prompts without and with a picture, either of them None; they share all weights.

    Raises:
        UserError: the pipeline is for something else.
    """
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    takes, kind = _takes(pipeline), type(pipeline)
    problem = next((words for name, words in _REFUSED.items() if name in takes), None)
    if "prompt" not in takes or not {"height", "image"} & takes.keys():
        problem = "does not draw from a prompt"
    if problem:
        raise UserError(
            f"model.weights: a {kind.__name__} {problem}; take a text-to-image or image-editing pipeline"
        )
    if "image" not in takes:
        return pipeline, _sibling(AutoPipelineForImage2Image, pipeline)
    if kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():  # its picture may be left out
        return pipeline, pipeline
    return _sibling(AutoPipelineForText2Image, pipeline), pipeline


def _sibling(task: Any, pipeline: Any) -> Any:
    """The pipeline of another task on the same modules; None where the library has none for this one."""
    try:
        found = task.from_pipe(pipeline)
    except ValueError:  # the library's word for it
        return None
    if type(found) is type(pipeline) or any(name in _takes(found) for name in _REFUSED):
        return None
    found.set_progress_bar_config(disable=True)
    return found


def options(settings: Diffusion, pipeline: Any) -> dict[str, Any]:
    """Those of the options that are set and that this pipeline takes, under its own names."""
    takes = _takes(pipeline)
    given = {theirs: getattr(settings, ours) for ours, theirs in ARGUMENTS.items()}
    if settings.size is not None:
        given["width"], given["height"] = settings.size
    return {name: value for name, value in given.items() if value is not None and name in takes}


def check_options(settings: Diffusion, pipelines: Sequence[Any]) -> None:
    """Refuse an option that nothing here takes, or that would do nothing."""
    taken = {name for pipeline in pipelines for name in _takes(pipeline)}
    names = " and ".join(dict.fromkeys(type(pipeline).__name__ for pipeline in pipelines))
    for ours, theirs in (*ARGUMENTS.items(), ("size", "height")):
        value = getattr(settings, ours)
        if value is not None and theirs not in taken:
            raise UserError(f"model.{ours}: {names} takes no {theirs}, got {value}; set it to null")
    for pipeline in pipelines:
        takes, chosen = _takes(pipeline), options(settings, pipeline)
        if "strength" not in takes:
            continue
        strength, steps = (
            chosen.get(name, takes[name].default) for name in ("strength", "num_inference_steps")
        )
        if strength is not None and steps is not None and int(strength * steps) < 1:
            raise UserError(
                f"model.strength: {strength} of {steps} steps is less than one step in "
                f"{type(pipeline).__name__}; raise model.strength or model.steps"
            )
    if settings.negative is None:
        return
    for pipeline in pipelines:
        takes, chosen = _takes(pipeline), options(settings, pipeline)
        scale = "true_guidance" if "true_cfg_scale" in takes else "guidance"
        theirs = ARGUMENTS[scale]
        if theirs not in takes or theirs not in chosen and takes[theirs].default is None:
            continue
        value = chosen.get(theirs, takes[theirs].default)
        if value <= 1:
            raise UserError(
                f"model.negative: does nothing in {type(pipeline).__name__} at {scale} {value}; set "
                f"model.{scale} above 1, or model.negative to null"
            )
