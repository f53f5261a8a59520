"""The guide's pictures: the pages of a store's runs and MLflow's UI, as a browser shows them.

    python scripts/screenshots.py HOME [--out docs/pictures]

HOME (a GAPEVAL_LAB_HOME) holds runs of `rome_world_knowledge`, whose newest is shown, and of other recipes to
compare it with. Needs chromium and chromedriver on the path, and the package's extra `test`. Fails where a
page's scripts complain or a page does not show what it should.
"""

import argparse
import base64
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import MLFLOWS_OWN, PHONE, browser, complaints, screen, text, until  # noqa: E402
from PIL import Image  # noqa: E402

RECIPE = "rome_world_knowledge"
OTHERS = ("memit_world_knowledge", "lora_world_knowledge_text")
SHARP, WIDE_SHARP, PHONE_SHARP = 1.5, 1.25, 2  # pixels of a picture per pixel of a page
EDGE = 24  # pixels left above and below what is cut out
MOST = 200 * 1024  # bytes of a picture
COLORS = (256, 128, 64, 32)  # of its palette; fewer where it would be too large
# MLflow opens a panel of its own the first time that it sees a browser.
NO_PANEL = "if (location.host) localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
# Shown under a mouse alone; without one, they would lie on every chart.
NO_TOOLS = "document.head.append(Object.assign(document.createElement('style'), {textContent: arguments[0]}))"
TOOLS = ".modebar, [data-component-id^='mlflow.assistant'] { display: none !important }"
CHARTS = "return document.querySelector('.bars path') && document.querySelector('.parcoords canvas')"
ATTACHED = (
    "return [...document.querySelectorAll('[role=dialog] img')].filter((one) => one.naturalWidth).length"
)


@dataclass(frozen=True)
class Shown:
    """The run that is shown: its ids in MLflow, its baseline's, and its folder."""

    experiment: str
    run: str
    baseline: str
    folder: Path


def find(home: Path) -> Shown:
    """The newest run of the recipe."""
    from gapeval_lab.tracking_store import Store

    store = Store.open(home)
    ids = [number for _, number in store.experiments()]
    query = f"tags.recipe = '{RECIPE}' and tags.kind = 'edit' and attributes.status = 'FINISHED'"
    found = store.client.search_runs(ids, query, order_by=["attributes.start_time DESC"], max_results=1)
    if not found:
        raise SystemExit(f"no finished run of {RECIPE} in {home}")
    (run,) = found
    folder = store.folder / "outcomes" / run.data.tags["gapeval.outcome"]
    return Shown(run.info.experiment_id, run.info.run_id, run.data.tags["gapeval.baseline_run_id"], folder)


@contextmanager
def served(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """`gapeval-lab ui` on the store; gives the addresses that it prints, by their names."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gapeval_lab.cli", "ui", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        found: dict[str, str] = {}
        for line in process.stdout or ():
            words = line.split()
            if words and words[-1].startswith("http"):
                found.setdefault(" ".join(words[:-1]), words[-1])
            if "Ctrl-C" in line:
                break
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def keep(png: bytes, file: Path) -> None:
    """Write a picture as a PNG that is not too large: with a palette only where it has to be."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colors in (0, *COLORS):
        made = io.BytesIO()
        kind = Image.Quantize.MAXCOVERAGE
        small = picture.quantize(colors, kind, kmeans=2, dither=Image.Dither.NONE) if colors else picture
        small.save(made, "PNG", optimize=True)
        if made.tell() <= MOST:
            break
    file.write_bytes(made.getvalue())
    print(f"{file}: {picture.width} x {picture.height}, {made.tell() / 1024:.0f} KiB")


def shoot(driver: Any, file: Path, *, since: str = "", to: str = "", sharp: float = SHARP) -> None:
    """A picture of what is in sight; with `since` and `to`, from where one begins to where one ends."""
    one = "return document.querySelector(arguments[0]).getBoundingClientRect()"
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    width, height, left, top = driver.execute_script("return [innerWidth, innerHeight, scrollX, scrollY]")
    start = max(0, driver.execute_script(one, since)["top"] - EDGE) if since else 0
    end = min(height, driver.execute_script(one, to)["bottom"] + EDGE) if to else height
    clip = {"x": left, "y": top + start, "width": width, "height": end - start, "scale": sharp}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "format": "png"})["data"]
    keep(base64.b64decode(shot), file)


def fresh(driver: Any, address: str) -> None:
    """Open an address from scratch, also where only its fragment differs from the last one's."""
    driver.get("about:blank")
    driver.get(address)


def show_pages(driver: Any, shown: Shown, comparison: Path, out: Path) -> None:
    """The report's head, its gallery with a filter set, the report on a phone, and a comparison's head."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    report = (shown.folder / "report.html").as_uri()
    with screen(driver, 1100, 1400):
        fresh(driver, report)
        shoot(driver, out / "report.png", to="#gap .beside")
        select = driver.find_element(By.XPATH, "//form[@class='filters']//label[span='Drawn']/select")
        lost = select.find_element(By.CSS_SELECTOR, "option[data-label=lost]")
        Select(select).select_by_value(lost.get_attribute("value"))
        driver.execute_script("document.activeElement.blur()")
        driver.execute_script("document.querySelector('#gallery').scrollIntoView()")
        shoot(driver, out / "gallery.png", since="#gallery h2", to=".cards")
        fresh(driver, comparison.as_uri())
        shoot(driver, out / "comparison.png", to="#runs .table")
    with screen(driver, PHONE):
        fresh(driver, report)
        shoot(driver, out / "phone.png", sharp=PHONE_SHARP)


def show_mlflow(driver: Any, shown: Shown, addresses: dict[str, str], out: Path) -> None:
    """The two saved views, the traces beside the baseline's, and one flipped item of them."""
    from selenium.webdriver.common.by import By

    from gapeval_lab.tracking_traces import traces_link

    def seen(*parts: str) -> None:
        until(f"{parts}", lambda: all(part in text(driver) for part in parts))

    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NO_PANEL})
    with screen(driver, 1700, 640):
        fresh(driver, addresses["leaderboard"])
        seen("matching runs", "-text-", "baseline", "verdict")
        driver.execute_script(NO_TOOLS, TOOLS)
        shoot(driver, out / "leaderboard.png", sharp=WIDE_SHARP)
    with screen(driver, 1700, 1200):
        fresh(driver, addresses["gap shift"])
        seen("Did the gap close?", "delta/gap_score")
        until("the charts", lambda: driver.execute_script(CHARTS))
        driver.execute_script(NO_TOOLS, TOOLS)
        shoot(driver, out / "charts.png", sharp=WIDE_SHARP)
    root = addresses["leaderboard"].partition("#")[0]
    with screen(driver, 1500, 1000):
        fresh(driver, root + traces_link(shown.experiment, shown.run, shown.baseline))
        seen("compare to", "understanding", '"item"')
        driver.execute_script(NO_TOOLS, TOOLS)
        shoot(driver, out / "traces.png", sharp=WIDE_SHARP)
        row = "//*[@role='row'][.//*[@role='cell'][contains(@style, 'col-generation')][contains(., 'True')]"
        row += "[contains(., 'False')]]"
        driver.find_element(By.XPATH, f"{row}//a").click()
        until("both pictures", lambda: driver.execute_script(ATTACHED) == 2)
        shoot(driver, out / "trace.png", to="[role=dialog] img")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    given = parser.parse_args()
    out, home = given.out.absolute(), given.home.absolute()
    out.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"GAPEVAL_LAB_HOME": str(home), "PYTHONPATH": str(ROOT)}
    shown = find(home)
    with tempfile.TemporaryDirectory() as place:
        comparison = Path(place) / "comparison.html"
        words = ["compare", RECIPE, *OTHERS, "--html", str(comparison)]
        command = [sys.executable, "-m", "gapeval_lab.cli", *words]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        with browser(Path(place) / "profile") as driver:
            driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
            show_pages(driver, shown, comparison, out)
            with served(environment) as addresses:
                show_mlflow(driver, shown, addresses, out)
            wrong = complaints(driver, but=MLFLOWS_OWN)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
