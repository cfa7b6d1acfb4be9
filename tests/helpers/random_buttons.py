# SPDX-License-Identifier: Apache-2.0
"""`ns-train ARGUMENTS` with a live page whose controls are used at random moments: `python random_buttons.py SEED ARGUMENTS`."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import viser

from pmni_nerfstudio.interrupts import exit_before_training


def press(handle: Any) -> None:
    """Call what the server calls when somebody has used a control, in this thread."""
    for callback in handle._impl.update_cb:
        callback(viser.GuiEvent(client=None, client_id=None, target=handle))


def choose(handle: Any, rng: np.random.Generator, options: list[Any]) -> None:
    """Set a control to one of its values, which calls what depends on it."""
    handle.value = options[rng.integers(len(options))]


def use(page: Any, rng: np.random.Generator, ended: threading.Event) -> None:
    """Use the controls of a live page at random moments until the process ends."""
    panel, viewer = page.panel, page.viewer
    while not ended.wait(rng.exponential(0.4)):
        action = rng.integers(6)
        buttons = [button for button in panel._buttons if not button.disabled]
        if action <= 2 and buttons:
            press(buttons[rng.integers(len(buttons))])
        elif action == 3:
            choose(panel._cameras, rng, list(panel._cameras.options))
        elif action == 4:
            choose(panel._overlay, rng, [True, False])
        elif viewer.trainer.training_state == "training":
            press(viewer.pause_train)
            ended.wait(rng.uniform(0, 0.5))
            press(viewer.resume_train)


def main() -> None:
    """Run ns-train in this process."""
    seed, *arguments = sys.argv[1:]
    sys.argv = ["ns-train", *arguments]
    exit_before_training()
    from nerfstudio.scripts.train import entrypoint

    from pmni_nerfstudio.viewer import actions
    from pmni_nerfstudio.viewer.live import LivePage

    actions.EXPORT_CELLS = 64  # small meshes: many exports
    set_up = LivePage._setup

    def set_up_and_use(page: Any, viewer: Any) -> None:
        set_up(page, viewer)
        for number in range(2):  # two people
            rng = np.random.default_rng([int(seed), number])
            threading.Thread(target=use, args=(page, rng, threading.Event()), daemon=True).start()

    LivePage._setup = set_up_and_use
    entrypoint()


if __name__ == "__main__":
    main()
