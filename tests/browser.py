"""Pages in a real Chromium, for the tests that look at them.

They need playwright and Chromium, and are skipped where these are not; with REQUIRE_BROWSER set
they fail there. With SCREENSHOTS=DIR pictures of the pages are kept.
"""

import os
import shutil
import struct
from pathlib import Path

import pytest
from patience import PATIENCE

REQUIRED = "REQUIRE_BROWSER" in os.environ


def missing(what):
    if REQUIRED:
        pytest.fail(f"{what} is not here")
    pytest.skip(f"{what} is not here")


@pytest.fixture(scope="module")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright")
    path = shutil.which("chromium") or missing("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """Opens pages, and hears of every error and of every request that they make."""

    def __init__(self, browser):
        self.browser, self.contexts = browser, []
        self.faults, self.requests = [], []

    def open(self, url, width=1100, scheme="light", before=None, **options):
        context = self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        context.set_default_timeout(1000 * PATIENCE)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        if before:
            page.add_init_script(before)
        page.goto(url)
        return page


@pytest.fixture
def watched(chromium):
    watched = Watched(chromium)
    yield watched
    for context in watched.contexts:
        context.close()
    assert watched.faults == [], watched.faults


def picture(page, name, least=3000, dense=100_000):
    """A screenshot of the whole page, which is not blank: kept where SCREENSHOTS says.

    Args:
        least: pixels of height.
        dense: bytes of a picture 3,000 pixels high, at least.
    """
    png = page.screenshot(full_page=True)
    width, height = struct.unpack(">II", png[16:24])
    assert width == page.viewport_size["width"]
    assert height > least
    assert len(png) > dense * least / 3000
    if "SCREENSHOTS" in os.environ:
        (Path(os.environ["SCREENSHOTS"]) / f"{name}.png").write_bytes(png)
