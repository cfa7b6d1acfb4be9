# SPDX-License-Identifier: Apache-2.0
"""Pages in headless Chromium with software WebGL and no network: of a file (`opened`) or of a local server (`live`)."""

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
"""Address that viser's page reports its visits to; it gets an empty answer and is not counted as a request."""
VISER_OWN_ERROR = "THREE.BufferGeometry.computeBoundingSphere(): Computed radius is NaN."
"""Start of a line that every viser page writes on its console, even an empty one: its splat geometry is empty."""
PATIENCE_MS = 60_000
ONLY_CANVAS = "* { visibility: hidden !important } canvas { visibility: visible !important }"
"""Style sheet that hides the panels over viser's canvas."""


@dataclass
class Opened:
    """A browser page, with its errors and network requests since it was opened."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """Errors on the console and exceptions in scripts."""
    requests: list[str] = field(default_factory=list)
    """Network addresses that the page requested; none of the requests is answered."""
    statistics: list[str] = field(default_factory=list)
    """Addresses of viser's statistics that the page requested; the answers were empty."""

    def open(self, path: Path) -> None:
        """Load a file."""
        self.page.goto(path.resolve().as_uri())

    def visit(self, url: str) -> None:
        """Load a page of a server; wait until it has a canvas."""
        self.page.goto(url)
        self.page.wait_for_selector("canvas")

    def canvas(self, until: Callable[[np.ndarray], bool] | None = None) -> np.ndarray:
        """Picture of the first canvas without the elements over it, (H, W, 3) uint8, RGB, once it is not uniform.

        Args:
            until: condition on the picture to wait for; by default, the first picture that is not uniform is returned.

        Raises:
            AssertionError: the condition was not met within PATIENCE_MS.
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
            assert time.monotonic() - start < PATIENCE_MS / 1000, "the canvas never showed the expected picture"
            self.page.wait_for_timeout(200)

    def pixels(self, selector: str) -> np.ndarray:
        """Picture of the first matching element, or part of one, (H, W, 3) uint8, once the page has drawn it.

        Args:
            selector: starts with the section's.
        """
        import cv2

        section, _, _ = selector.partition(" ")
        self.page.locator(section).first.scroll_into_view_if_needed()
        self.page.wait_for_selector(f"[data-drawn] {selector.removeprefix(section)}, {selector}[data-drawn]")
        element = self.page.locator(selector).first
        element.scroll_into_view_if_needed()
        picture = cv2.imdecode(np.frombuffer(element.screenshot(), dtype=np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        return picture


def lit(picture: np.ndarray) -> np.ndarray:
    """Pixels that are brighter than viser's background, (H, W) bool."""
    return picture.max(axis=2) > 90


@pytest.fixture
def opened() -> Iterator[Opened]:
    """A browser page for local files; the test is skipped if there is no browser."""
    with _browser(LOCAL) as found:
        yield found


@pytest.fixture
def live() -> Iterator[Opened]:
    """A browser page that reaches servers on this machine; the test is skipped if there is no browser."""
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
                found.statistics.append(route.request.url)
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
