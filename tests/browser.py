"""A headless Chromium for tests; those that need one are skipped where there is none.

It finds no address but this machine's own, so that no test depends on a network.
"""

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Work that no test looks at.
    "--disable-extensions",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
    "--disable-site-isolation-trials",
    "--renderer-process-limit=1",
    "--force-prefers-reduced-motion",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
MLFLOWS_OWN = ("/ajax-api/2.0/mlflow/users/current", "ResizeObserver loop completed", "> attribute ")
"""Errors of MLflow's own: it asks who is there, which a server without accounts does not know; its charts are
laid out twice where their place changes; some are drawn before they have one ('<g> attribute ... NaN')."""
PHONE = 390  # pixels, of a common phone
PATIENCE = 120.0  # seconds; a busy machine is no reason to fail

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and importlib.util.find_spec("selenium")),
    reason="needs chromium, chromedriver and selenium",
)

# What of a page reaches beyond its width, widest first; "" where nothing does.
SIDEWAYS = """
const page = document.scrollingElement, most = page.clientWidth;
scrollTo(1e6, scrollY);
const moved = scrollX;
scrollTo(0, scrollY);
if (!moved && page.scrollWidth <= most) return "";
const ends = [...document.body.querySelectorAll("*")].map((one) => [one.getBoundingClientRect().right, one]);
ends.sort((one, other) => other[0] - one[0]);
const names = ends.slice(0, 3).map(([end, one]) => `${one.localName}.${one.className} to ${Math.round(end)}`);
return `${page.scrollWidth} of ${most} pixels: ${names.join(", ")}`;
"""


@contextmanager
def browser(profile: Path, *, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A Chromium of its own, with a new profile, that keeps what scripts complain about."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        yield driver
    finally:
        driver.quit()


def complaints(driver: Any, *, but: Sequence[str] = ()) -> list[str]:
    """The errors that were logged since it was last asked, but for those that hold one of `but`."""
    found = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in found if not any(known in message for known in but)]


def sideways(driver: Any) -> str:
    """What makes the page scroll sideways; empty where nothing does."""
    return str(driver.execute_script(SIDEWAYS))


@contextmanager
def screen(driver: Any, width: int, height: int = 844) -> Iterator[None]:
    """Another size of the page; a window itself cannot be as narrow as a phone."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@contextmanager
def medium(driver: Any, name: str) -> Iterator[None]:
    """As styles for print, say, show the page."""
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": name})
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def until(what: str, holds: Callable[[], Any], *, seconds: float = PATIENCE) -> Any:
    """Wait for something; returns it. Elements that a page replaces meanwhile are looked for again."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        try:
            found = holds()
        except (NoSuchElementException, StaleElementReferenceException):
            found = None
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)  # looking is work, too: a page is laid out for it


def text(driver: Any) -> str:
    """All that is to be read on the page now."""
    return str(driver.execute_script("return document.body.innerText"))
