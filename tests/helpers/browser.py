# SPDX-License-Identifier: Apache-2.0
"""A page in headless Chromium, with WebGL by software and no network: a file (`opened`) or a server here (`live`)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
LOCAL = ("file:", "data:", "blob:")
OWN_SERVERS = ("http://127.0.0.1:", "http://localhost:")
VISER_STATISTICS = "https://www.googletagmanager.com/"
"""Whom viser's page tells that it was opened. Here that gets an empty answer, and is no fault of ours."""
VISER_OWN_ERROR = "THREE.BufferGeometry.computeBoundingSphere(): Computed radius is NaN."
"""How a line begins that every viser page writes on its console, an empty one too: its geometry of no splats."""
PATIENCE_MS = 60_000
ONLY_CANVAS = "* { visibility: hidden !important } canvas { visibility: visible !important }"
"""A style sheet; panels lie over viser's canvas."""


@dataclass
class Opened:
    """A browser's page and what it complained of since it was opened."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """Of the console, and exceptions of scripts."""
    requests: list[str] = field(default_factory=list)
    """Addresses on the network that it asked for; none of them was answered."""

    def open(self, path: Path) -> None:
        """Load a file."""
        self.page.goto(path.resolve().as_uri())

    def visit(self, url: str) -> None:
        """Load a page of a server; wait until it has a canvas."""
        self.page.goto(url)
        self.page.wait_for_selector("canvas")

    def canvas(self, until: Callable[[np.ndarray], bool] | None = None) -> np.ndarray:
        """What the first canvas shows, without what lies over it: (H, W, 3) uint8, RGB; never one that is all one colour.

        Args:
            until: ask again until this holds of the picture; by default, the first that shows something is taken.

        Raises:
            AssertionError: it didn't come to hold in PATIENCE_MS.
        """
        import cv2

        start = time.monotonic()
        while True:
            shot = self.page.locator("canvas").first.screenshot(style=ONLY_CANVAS)
            bgr = cv2.imdecode(np.frombuffer(shot, dtype=np.uint8), cv2.IMREAD_COLOR)
            assert bgr is not None
            picture = bgr[..., ::-1]
            drawn = np.ptp(picture, axis=(0, 1)).any()  # white all over while the page loads
            if drawn and (until is None or until(picture)):
                return picture
            assert time.monotonic() - start < PATIENCE_MS / 1000, "the canvas never showed what is waited for"
            self.page.wait_for_timeout(200)

    def pixels(self, selector: str) -> np.ndarray:
        """What the first such element looks like once Plotly has drawn it: (H, W, 3) uint8."""
        import cv2

        element = self.page.locator(selector).first
        element.scroll_into_view_if_needed()
        self.page.wait_for_selector(f"{selector}[data-drawn]")
        picture = cv2.imdecode(np.frombuffer(element.screenshot(), dtype=np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        return picture


def lit(picture: np.ndarray) -> np.ndarray:
    """Pixels that are brighter than viser's background, (H, W) bool."""
    return picture.max(axis=2) > 90


@pytest.fixture
def opened() -> Iterator[Opened]:
    """A page of a browser, for files only; the test is skipped where there is none."""
    with _browser(LOCAL) as found:
        yield found


@pytest.fixture
def live() -> Iterator[Opened]:
    """A page of a browser that reaches servers on this machine; the test is skipped where there is none."""
    with _browser(LOCAL + OWN_SERVERS) as found:
        yield found


@contextmanager
def _browser(allowed: tuple[str, ...]) -> Iterator[Opened]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the path")
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        found = Opened(page)

        def answer(route) -> None:
            if route.request.url.startswith(allowed):
                route.continue_()
            elif route.request.url.startswith(VISER_STATISTICS):
                route.fulfill(body="")
            else:
                found.requests.append(route.request.url)
                route.abort()

        page.route("**/*", answer)
        page.on("console", lambda line: found.errors.append(line.text) if _is_fault(line) else None)
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        yield found
        browser.close()


def _is_fault(line: ConsoleMessage) -> bool:
    return line.type == "error" and not line.text.startswith(VISER_OWN_ERROR)
