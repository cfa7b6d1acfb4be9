# SPDX-License-Identifier: Apache-2.0
"""Measure how much the live page slows training: without a browser, with an open page, and with a moving camera.

    python benchmarks/bench_viewer.py [--steps 50] [--rounds 3] [--draw]

Needs Chromium (Debian: apt-get install chromium), which runs headless on the same cores. Without a GPU its WebGL would
keep both cores busy, so that it redraws only twice a second, in a small window; this leaves about the load of a browser
with a GPU. --draw removes this limit and uses a window of common size.

"blocked" is the fraction of the time in which the training thread waits for a frame or updates the page. "slower" is the
increase of the time per step relative to the measurements without a page before and after; it includes the browser's own
load and the noise of the machine. Typically an open page slows training by 5 to 6% (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nerfstudio.engine.trainer import TrainerConfig
from playwright.sync_api import Page, sync_playwright
from runs import NOISE, make_scene

from pmni_nerfstudio.pmni_config import pmni
from pmni_nerfstudio.training.lock import TrainingLock
from pmni_nerfstudio.training.trainer import PmniTrainer

CHROMIUM_FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
"""Flags for WebGL without a GPU; the same as in tests/helpers/browser.py, which benchmarks cannot import."""
PORT = 7017
TRAINING_THREAD = "training"
REDRAW_SELDOM = "window.requestAnimationFrame = f => setTimeout(() => f(performance.now()), 500)"
SECONDS_TO_LOAD = 12
"""Time to wait after opening a page, whose scripts and shaders keep a core busy for some seconds."""
MODES = ("no page", "page, no browser", "browser, no updates", "browser, camera at rest", "browser, camera moving")
"""The third measures the load of the browser alone."""


def main() -> None:
    """Measure all modes in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=50, help="steps per measurement; each 50 steps include one pose step"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements per mode")
    parser.add_argument("--draw", action="store_true", help="let the browser redraw at its full rate")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("error: chromium is not on the PATH; install it")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        trainer, thread = start(Path(folder))
        page = browser.new_page(
            viewport={"width": 1280, "height": 900} if options.draw else {"width": 720, "height": 500}
        )
        if not options.draw:
            page.add_init_script(REDRAW_SELDOM)
        page.goto(f"http://localhost:{PORT}")
        page.get_by_text("Resolution:").wait_for()
        started_at = time.perf_counter()
        trainer.training_state = "training"
        while page.get_by_text("Resolution: 0x0px").count():
            page.wait_for_timeout(50)
        print(f"first frame {time.perf_counter() - started_at:.1f} s after the start of the training")
        page.goto("about:blank")
        slower: dict[str, list[float]] = {mode: [] for mode in MODES[1:]}
        blocked: dict[str, list[float]] = {mode: [] for mode in MODES[1:]}
        before, _ = measure(trainer, page, MODES[0], options.steps)
        for _ in range(options.rounds):
            for mode, slower_pct in slower.items():  # each between two without a page, because the speed drifts
                seconds, blocked_share = measure(trainer, page, mode, options.steps)
                after, _ = measure(trainer, page, MODES[0], options.steps)
                slower_pct.append(100 * (2 * seconds / (before + after) - 1))
                blocked[mode].append(100 * blocked_share)
                before = after
        print(f"{'':26}{'blocked':>9}{'slower':>9}   slower, all rounds")
        for mode, slower_pct in slower.items():
            medians = [statistics.median(values) for values in (blocked[mode], slower_pct)]
            rounds = " ".join(f"{value:6.1f}" for value in sorted(slower_pct))
            print(f"{mode:26}{medians[0]:8.1f}%{medians[1]:8.1f}%   {rounds}")
        browser.close()
        trainer.training_state, trainer.stop_training = "training", True
        thread.join()


def start(folder: Path) -> tuple[PmniTrainer, threading.Thread]:
    """Start a run that waits before its first step, and return it with its thread."""
    scene = make_scene(folder / "scene", ["--shape", "figure", *NOISE])
    config: TrainerConfig = copy.deepcopy(pmni.config)
    config.data = config.pipeline.datamanager.data = scene  # type: ignore[attr-defined]
    config.output_dir, config.experiment_name, config.timestamp = folder / "runs", "bench", "run"
    config.max_num_iterations, config.start_paused = 1_000_000, True
    config.viewer.websocket_port = PORT
    config.pipeline.model.converged_normals_deg = 0.0  # type: ignore[attr-defined]
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    assert isinstance(trainer, PmniTrainer)
    trainer.setup()
    thread = threading.Thread(target=trainer.train, name=TRAINING_THREAD, daemon=True)
    thread.start()
    return trainer, thread


def measure(trainer: PmniTrainer, page: Page, mode: str, steps: int) -> tuple[float, float]:
    """Seconds per step in one of the modes, and the fraction of the time in which the page blocks the training thread."""
    opens_page = mode.startswith("browser")
    if opens_page:
        page.goto(f"http://localhost:{PORT}")
        page.get_by_text("Training: step").wait_for()
        page.wait_for_timeout(1000 * SECONDS_TO_LOAD)
    update, lock, blocked = trainer._update_viewer_state, trainer.train_lock, []
    assert isinstance(lock, TrainingLock)
    trainer._update_viewer_state = (lambda step: None) if mode in (MODES[0], MODES[2]) else timed(update, blocked)
    lock.acquire = timed(lock.acquire, blocked)
    first = -(-(trainer.step + 1) // 50) * 50
    while trainer.step < first:
        page.wait_for_timeout(5)
    blocked.clear()
    started_at = time.perf_counter()
    page.mouse.move(200, 400)
    page.mouse.down()
    turn = 0
    while trainer.step < first + steps:
        if mode == MODES[4]:
            turn += 1
            page.mouse.move(200 + 100 * (turn % 2), 400)
        page.wait_for_timeout(100)
    seconds = time.perf_counter() - started_at
    page.mouse.up()
    trainer._update_viewer_state = update
    del lock.acquire
    if opens_page:
        page.goto("about:blank")
        page.wait_for_timeout(1000)
    return seconds / steps, sum(blocked) / seconds


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Wrap a function to record the times of its calls in the training thread."""

    def wrapped(*arguments: Any) -> Any:
        started_at = time.perf_counter()
        result = function(*arguments)
        if threading.current_thread().name == TRAINING_THREAD:
            seconds.append(time.perf_counter() - started_at)
        return result

    return wrapped


if __name__ == "__main__":
    main()
