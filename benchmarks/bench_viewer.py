# SPDX-License-Identifier: Apache-2.0
"""What a page costs: steps per second of one run without a page, with one that nobody opens, and with a browser on it.

The browser is headless Chromium (Debian: apt-get install chromium) on the same cores. It draws by software, and takes
nearly both cores for nothing but that; so it is made to draw twice a second only, in a small window, which leaves about
what a browser with a GPU has to do. `--draw` lets it draw as often as it likes, in a window of usual size.

"held up" is the part of the time in which the training's thread waits for a frame or looks after the page: exact, where
the comparison of paces has a machine's noise in it, and the browser's own work.
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

CHROMIUM = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PORT = 7017
TRAINING = "training"
"""Name of its thread."""
SELDOM = "window.requestAnimationFrame = f => setTimeout(() => f(performance.now()), 500)"
SECONDS_TO_SETTLE = 12
"""A page that has just been opened keeps a core busy for some seconds, with its scripts and shaders."""
MODES = ("no page", "page, no browser", "browser, no updates", "browser, camera at rest", "browser, camera moving")
"""The third is what the browser itself takes of the cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="of each measurement; multiples of 50 hold a pose step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("error: no chromium on the path: install one")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=chromium, args=CHROMIUM)
        trainer, thread = start(Path(folder))
        page = browser.new_page(
            viewport={"width": 1280, "height": 900} if options.draw else {"width": 720, "height": 500}
        )
        if not options.draw:
            page.add_init_script(SELDOM)
        page.goto(f"http://localhost:{PORT}")
        page.get_by_text("Resolution:").wait_for()
        begun = time.perf_counter()
        trainer.training_state = "training"
        while page.get_by_text("Resolution: 0x0px").count():
            page.wait_for_timeout(50)
        print(f"first frame {time.perf_counter() - begun:.1f} s after the first step began")
        page.goto("about:blank")
        slower: dict[str, list[float]] = {mode: [] for mode in MODES[1:]}
        held_up: dict[str, list[float]] = {mode: [] for mode in MODES[1:]}
        before, _ = measured(trainer, page, MODES[0], options.steps)
        for _ in range(options.rounds):
            for mode, found in slower.items():  # each between two without a page: a run's pace drifts by more than this
                seconds, held = measured(trainer, page, mode, options.steps)
                after, _ = measured(trainer, page, MODES[0], options.steps)
                found.append(100 * (2 * seconds / (before + after) - 1))
                held_up[mode].append(100 * held)
                before = after
        print(f"{'':26}{'held up':>9}{'slower':>9}   than without a page, all rounds")
        for mode, found in slower.items():
            middle = [statistics.median(each) for each in (held_up[mode], found)]
            rounds = " ".join(f"{each:6.1f}" for each in sorted(found))
            print(f"{mode:26}{middle[0]:8.1f}%{middle[1]:8.1f}%   {rounds}")
        browser.close()
        trainer.training_state, trainer.stop_training = "training", True
        thread.join()


def start(folder: Path) -> tuple[PmniTrainer, threading.Thread]:
    """A run that has been set up and waits for its first step, and the thread that it runs in."""
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
    thread = threading.Thread(target=trainer.train, name=TRAINING, daemon=True)
    thread.start()
    return trainer, thread


def measured(trainer: PmniTrainer, page: Page, mode: str, steps: int) -> tuple[float, float]:
    """Seconds a step, in one of the modes, and the part of the time in which pages hold up the training's thread."""
    watches = mode.startswith("browser")
    if watches:
        page.goto(f"http://localhost:{PORT}")
        page.get_by_text("Training: step").wait_for()
        page.wait_for_timeout(1000 * SECONDS_TO_SETTLE)
    update, lock, held = trainer._update_viewer_state, trainer.train_lock, []
    assert isinstance(lock, TrainingLock)
    trainer._update_viewer_state = (lambda step: None) if mode in (MODES[0], MODES[2]) else timed(update, held)
    lock.acquire = timed(lock.acquire, held)
    first = -(-(trainer.step + 1) // 50) * 50
    while trainer.step < first:
        page.wait_for_timeout(5)
    held.clear()
    begun = time.perf_counter()
    page.mouse.move(200, 400)
    page.mouse.down()
    turn = 0
    while trainer.step < first + steps:
        if mode == MODES[4]:
            turn += 1
            page.mouse.move(200 + 100 * (turn % 2), 400)
        page.wait_for_timeout(100)
    seconds = time.perf_counter() - begun
    page.mouse.up()
    trainer._update_viewer_state = update
    del lock.acquire
    if watches:
        page.goto("about:blank")
        page.wait_for_timeout(1000)
    return seconds / steps, sum(held) / seconds


def timed(called: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The same function, which writes down how long it takes in the training's thread."""

    def wrapped(*arguments: Any) -> Any:
        begun = time.perf_counter()
        result = called(*arguments)
        if threading.current_thread().name == TRAINING:
            seconds.append(time.perf_counter() - begun)
        return result

    return wrapped


if __name__ == "__main__":
    main()
