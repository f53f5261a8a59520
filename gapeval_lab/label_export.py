"""A run's answers laid out for people to label: a CSV, the pictures, and a page with two keys.

Blind: neither phase nor model is named anywhere, answers that several phases share are asked once, and
the order is shuffled by the seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from gapeval_lab.errors import UserError
from gapeval_lab.files import write_bytes, write_text
from gapeval_lab.items import Direction, Item, Response, png_bytes
from gapeval_lab.labels import COLUMNS, answer_hash, table_csv

PAGE, TABLE = "label.html", "labels.csv"
EXTRA = ("question", "reference", "given", "picture")


def export(
    pairs: Sequence[tuple[Item, Response]], folder: Path, *, seed: int, limit: int | None = None
) -> int:
    """Write `labels.csv`, `label.html` and the pictures.

    The CSV has a row per answer with `correct`, `who` and `when` left empty; it can be filled in by hand
    instead of the page.

    Args:
        pairs: distinct answers.
        folder: new or empty.
        seed: of the order.
        limit: at most so many, the first in that order.

    Returns:
        the number of answers.

    Raises:
        UserError: the folder holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out: {folder} is there already and not empty; choose another folder")
    # By content first, so that the order depends on the seed alone and not on phases or the run's order.
    tasks = sorted(((answer_hash(*pair) or "", pair) for pair in pairs), key=lambda task: task[0])
    random.Random(seed).shuffle(tasks)
    tasks = tasks[:limit]
    rows: list[list[str]] = []
    shown: list[dict[str, object]] = []
    for number, (answer, (item, response)) in enumerate(tasks, start=1):
        prompt, picture = item.prompt(response.direction), ""
        if response.image is not None:
            picture = f"pictures/{number:05d}.png"
            write_bytes(folder / picture, png_bytes(response.image))
        asked, wanted = "", ""
        if prompt.pictures:
            asked = f"pictures/{number:05d}-asked.png"
            write_bytes(folder / asked, png_bytes(prompt.images[0]))
        if item.references and response.direction is Direction.GENERATION:
            wanted = f"pictures/{number:05d}-reference.png"
            write_bytes(folder / wanted, png_bytes(item.reference_images[0]))
        reference = " | ".join(item.accepted)
        key = [item.id, str(response.direction), answer]
        rows.append([*key, "", "", "", prompt.text, reference, response.text or "", picture])
        shown.append(
            {
                "key": key,
                "question": prompt.text,
                "asked": asked,
                "reference": reference,
                "wanted": wanted,
                "given": response.text,
                "picture": picture,
            }
        )
    write_text(folder / TABLE, table_csv((*COLUMNS, *EXTRA), rows))
    write_text(folder / PAGE, _page(shown))
    return len(tasks)


def _page(tasks: Sequence[dict[str, object]]) -> str:
    # "<" never stands in the data, so that no answer can end the script it stands in.
    data = json.dumps(tasks, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", " ")
    # Labels that a browser kept are told apart by place: never those of another export in another order.
    store = hashlib.sha256(json.dumps([task["key"] for task in tasks]).encode()).hexdigest()[:16]
    page = _TEMPLATE.replace("@COLUMNS@", json.dumps(COLUMNS)).replace("@STORE@", store)
    return page.replace("@TASKS@", data)


_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Labels</title>
<style>
  body { font: 18px/1.5 sans-serif; max-width: 50em; margin: 1em auto; padding: 0 1em; }
  img { min-width: 12em; max-width: 100%; max-height: 45vh; border: 1px solid #999; }
  img { image-rendering: pixelated; }
  figure { display: inline-block; margin: 0.5em 1em 0.5em 0; vertical-align: top; }
  figcaption, .dim { color: #666; font-size: 0.8em; }
  button { font: inherit; padding: 0.3em 1em; margin-right: 0.5em; }
  .given { font-weight: bold; white-space: pre-wrap; }
</style>
<p><label>Your name: <input id="who" autocomplete="off"></label>
   <span class="dim" id="count"></span>
   <strong id="first" hidden>Write your name first, then Enter.</strong></p>
<div id="task"></div>
<p><button id="y">right (y)</button><button id="n">wrong (n)</button><button id="s">skip (s)</button>
   <button id="b">back (b)</button><button id="save">save the CSV</button></p>
<p class="dim">Is the answer right, judged against the reference?
The labels stay in this browser until they are saved.</p>
<script>
const columns = @COLUMNS@;
const tasks = @TASKS@;
const store = "labels:@STORE@";
let said = {}, at = 0;
const byId = (name) => document.getElementById(name);
try {
  const kept = JSON.parse(localStorage.getItem(store));
  said = kept.said; at = kept.at; byId("who").value = kept.who;
}
catch (error) { said = {}; at = 0; }
function keep() {
  try { localStorage.setItem(store, JSON.stringify({ said, at, who: byId("who").value })); } catch (error) {}
}
function picture(place, file, words) {
  if (!file) return;
  const figure = document.createElement("figure"), image = document.createElement("img");
  image.src = file;
  const caption = document.createElement("figcaption");
  caption.textContent = words;
  figure.append(image, caption);
  place.append(figure);
}
function line(place, name, words) {
  const paragraph = document.createElement("p");
  paragraph.className = name;
  paragraph.textContent = words;
  place.append(paragraph);
}
function show() {
  const place = byId("task"), task = tasks[at];
  place.replaceChildren();
  byId("count").textContent = Object.keys(said).length + " of " + tasks.length + " labelled";
  if (!task) { line(place, "", "That was the last one. Save the CSV."); return; }
  line(place, "dim", "Answer " + (at + 1) + (said[at] ? ", labelled " + said[at].correct : ""));
  line(place, "", task.question);
  picture(place, task.asked, "given with the question");
  picture(place, task.wanted, "a right picture (reference)");
  line(place, "dim", "Right: " + task.reference);
  if (task.given !== null) line(place, "given", task.given || "(empty answer)");
  picture(place, task.picture, "the answer");
}
function say(correct) {
  const unnamed = !byId("who").value.trim();
  byId("first").hidden = !unnamed;
  if (unnamed) { byId("who").focus(); return; }
  if (at >= tasks.length) return;
  if (correct) said[at] = { correct, when: new Date().toISOString() }; else delete said[at];
  at += 1; keep(); show();
}
function back() { if (at > 0) at -= 1; keep(); show(); }
function cell(text) { return /[",\\r\\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text; }
function save() {
  const who = byId("who").value.trim();
  const rows = Object.entries(said).map(([index, one]) => [...tasks[index].key, one.correct, who, one.when]);
  const text = [columns, ...rows].map((row) => row.map(cell).join(",")).join("\\n") + "\\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "labels-" + (who || "nobody") + ".csv";
  link.click();
}
byId("y").onclick = () => say("yes");
byId("n").onclick = () => say("no");
byId("s").onclick = () => say("");
byId("b").onclick = back;
byId("save").onclick = save;
byId("who").oninput = () => { byId("first").hidden = true; keep(); };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.id === "who") { if (event.key === "Enter") event.target.blur(); return; }
  const act = { y: () => say("yes"), n: () => say("no"), s: () => say(""), b: back }[event.key.toLowerCase()];
  if (act) { event.preventDefault(); act(); }
});
show();
</script>
</html>
"""
