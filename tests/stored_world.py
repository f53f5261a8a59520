"""A finished run of a scripted model on a few real items of tinyworld, before and after an edit."""

from pathlib import Path

import numpy as np
from PIL import Image

from gapeval_lab.bench import Bench, Stage, chosen_items, stages_of
from gapeval_lab.calibrating import scene_of
from gapeval_lab.delta import fingerprint
from gapeval_lab.items import Item, Prompt
from gapeval_lab.recipe import LoadedRecipe, resolve
from gapeval_lab.run import run
from gapeval_lab.scene import near_miss, render
from gapeval_lab.testing import ScriptedIntervention, ScriptedUMM
from gapeval_lab.work_folder import archive, working_folder

ITEMS = 24
RECIPE = f"""name: stored
about: a scripted model
seed: 0
model: {{config: embedded}}
benchmark: {{use: tinyworld}}
judge: {{use: exact}}
facts: {{file: facts/world_knowledge.jsonl, count: 1}}
intervention: {{use: rome, layer: 0}}
evaluation: {{limit: {ITEMS}, official: false, replicates: 200}}
controls: {{placebo: false}}
"""


def scripted(items: list[Item]) -> ScriptedUMM:
    """Right for every second item, in the other direction for every third; the edit teaches a few more."""
    by_text = {(item.understand.digest, 0): n for n, item in enumerate(items)}
    by_text |= {(item.generate.digest, 1): n for n, item in enumerate(items)}

    def right(number: int, every: int) -> bool:
        return number % every == 0 or (bool(umm.weight[0, 1] > 0.5) and number % 5 == 1)

    def tell(prompt: Prompt, seed: int) -> str:
        number = by_text.get((prompt.digest, 0), 1)
        return items[number].reference_text if right(number, 2) else "nobody knows"

    def draw(prompt: Prompt, seed: int) -> Image.Image:
        number = by_text.get((prompt.digest, 1), 1)
        picture = items[number].reference_images[0]
        scene = scene_of(picture)
        assert scene is not None
        return picture if right(number, 3) else render(near_miss(scene, np.random.default_rng(number)))

    umm = ScriptedUMM(tell, draw)
    return umm


def loaded_recipe() -> LoadedRecipe:
    return resolve(RECIPE, source="stored.yaml")


def make_run(home: Path, *, edited: bool = True) -> Path:
    """The folder of a finished run below `home/outcomes`."""
    loaded = loaded_recipe()
    benchmark = loaded.recipe.build("benchmark")
    items = chosen_items(loaded.recipe, benchmark)
    (stage,) = stages_of(loaded.recipe, benchmark)
    umm = scripted(items)
    stages = [Stage(stage.facts, ScriptedIntervention())] if edited else []
    bench = Bench(loaded, umm, loaded.recipe.build("judge"), benchmark, items, stages, fingerprint(umm.root))
    with working_folder(home, bench.key) as work:
        outcome = run(bench, home=home, work=work, on_stage=lambda _: None, on_progress=lambda *_: None)
        return archive(work, home / "outcomes" / outcome.run_id)
