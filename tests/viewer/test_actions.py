# SPDX-License-Identifier: Apache-2.0
"""Buttons of the live page at any moment of a run: one writer at a time, whole files, and an end after the page's."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
import trimesh
from helpers.serving import free_port
from helpers.training import make_config, set_up

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.training.lock import TrainingLock
from pmni_nerfstudio.training.trainer import PmniTrainer
from pmni_nerfstudio.viewer import actions as actions_module
from pmni_nerfstudio.viewer.live import LivePage

PATIENCE = 60.0


@pytest.mark.slow
@pytest.mark.parametrize("repetitions", [3, pytest.param(30, marks=pytest.mark.exhaustive)], ids=["some", "many"])
def test_saves_and_exports_from_threads_to_the_end_of_training_and_past_it(
    repetitions: int, sphere_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(actions_module, "EXPORT_CELLS", 48)
    messages: set[str] = set()
    for repetition in range(repetitions):
        changes = {"vis": "viewer+tensorboard", "viewer__websocket_port": free_port(), "steps_per_save": 3}
        trainer = set_up(make_config("pmni", sphere_folder, tmp_path / str(repetition), 12, **changes))
        assert isinstance(trainer, PmniTrainer)
        page, failures, messages = trainer.pipeline.live, [], set()
        assert isinstance(page, LivePage)
        ended = threading.Event()
        threads = [
            threading.Thread(target=hammer, args=(act, ended, messages, failures), daemon=True)
            for act in (page.actions.export, page.actions.save, page.actions.save)
        ]
        for thread in threads:
            thread.start()
        trainer.train()
        files = sorted(path.relative_to(trainer.base_dir) for path in trainer.base_dir.rglob("*"))
        time.sleep(0.2)
        assert files == sorted(path.relative_to(trainer.base_dir) for path in trainer.base_dir.rglob("*"))
        ended.set()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert failures == []
        (saved,) = trainer.checkpoint_dir.iterdir()
        assert saved.name == "step-000000011.ckpt" and torch.load(saved, weights_only=True)["step"] == 11
        meshes = list(trainer.base_dir.glob("mesh-*.ply"))
        assert meshes and all(trimesh.load(path, process=False).is_watertight for path in meshes)
        assert not list(trainer.base_dir.glob(".*-*"))
        assert "Not saved: training has ended, and the page is closing" in messages
        assert "Not exported: training has ended, and the page is closing" in messages
        assert any(message.startswith("Saved the checkpoint") for message in messages)
        assert any(message.startswith("Wrote mesh-") for message in messages)


def hammer(act, ended: threading.Event, messages: set[str], failures: list[BaseException]) -> None:
    """Press a button again and again, until training has ended and beyond."""
    try:
        while True:
            last = ended.is_set()
            messages.add(act())
            if last:
                return
            time.sleep(0.005)
    except BaseException as error:
        failures.append(error)


def test_what_the_user_asks_for_goes_first_without_credit_and_costs_none():
    lock, entered = TrainingLock(lambda: True, lambda: 0.0), threading.Event()
    lock.open()
    lock._credit = -100.0

    def ask() -> None:
        with lock.requested(PATIENCE), lock:
            entered.set()

    with lock:
        thread = threading.Thread(target=ask)
        thread.start()
        while not lock._requests:
            time.sleep(0.001)
        assert not entered.is_set()
    with lock:  # the next step
        assert entered.is_set()
    thread.join(PATIENCE)
    assert lock._credit == -100.0


def test_a_request_waits_no_longer_than_its_bound():
    lock, found = TrainingLock(lambda: True), []
    lock.open()

    def ask() -> None:
        try:
            with lock.requested(0.05):
                found.append("entered")
        except PmniError as error:
            found.append(str(error))

    with lock, lock:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(PATIENCE)
    assert found == ["training or another action was busy for 0.05 s; try again"]
    with pytest.raises(RuntimeError, match="not held"):
        lock.release()


def test_the_result_is_saved_before_pages_that_wait_once_training_has_ended():
    training = [True]
    lock, saved = TrainingLock(lambda: training[0]), threading.Event()
    lock.open()
    lock._waiting = 1  # a thread that never takes its turn

    def finish() -> None:
        lock.open()  # this thread trains
        training[0] = False
        with lock:
            saved.set()

    threading.Thread(target=finish, daemon=True).start()
    assert saved.wait(PATIENCE)
