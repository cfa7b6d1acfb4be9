# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments of every command that writes: what bears a final name is whole, and the next start ends well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.importer_files import write_transforms
from helpers.scenes import make_tilted_ellipsoid

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.images import read_exr
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.training.trained_run import read_config

KILLS = 9
"""Of each command: 54 in all, in a quarter of an hour."""
LANES = 2
"""In which commands run at once, each in a folder of its own: a start is mostly imports, on one core."""
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Place:
    """A scene, a finished run of it, and another's data in another layout."""

    scene: Path
    config: Path
    source: Path

    def command(self, name: str, out: Path) -> list[str]:
        """A command that writes into a folder."""
        train = ["--vis", "tensorboard", "--experiment-name", "e", "--timestamp", "t", "--steps-per-save", "10"]
        run = ["--load-config", str(self.config), "--output-dir", str(out), "--resolution", "96"]
        words = {
            "register": ["pmni", "register", str(self.scene), "--output-dir", str(out)],
            "train": ["ns-train", "pmni", "--data", str(self.scene), "--output-dir", str(out), *train],
            "export": ["pmni", "export", *run, "--maps"],
            "eval": ["pmni", "eval", *run],
            # enlarged, so that most of its time goes into what can break
            "prepare": ["pmni", "prepare", str(self.source), str(out), "--overwrite", "--size", "576x480"],
            "suite": ["pmni", "suite", str(self.scene.parent / "suite.yml"), "--output-dir", str(out), "--jobs", "1"],
        }[name]
        steps = ["--max-num-iterations", "40"] if name == "train" else []
        return [str(BIN / words[0]), *words[1:], *steps]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("kills")
    SynthCommand(out=folder / "scene", views=6, width=48, height=40, mesh_resolution=32, rotation_noise_deg=3).main()
    (folder / "suite.yml").write_text(
        "scenes: [scene]\nmethods: [{name: pmni-calibrated, flags: [--max-num-iterations, 15]}]\nseeds: [1]\n"
    )
    source = write_transforms(folder / "source", make_tilted_ellipsoid())
    found = Place(folder / "scene", folder / "run" / "e" / "pmni" / "t" / "config.yml", source)
    assert run(found.command("train", folder / "run")) == 0
    return found


def run(command: list[str], seconds: float | None = None) -> int:
    """A command's exit code; killed with all its children after so many seconds."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, **quiet)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait()


def check_whole(folder: Path) -> int:
    """Reads every file that isn't hidden and not an event log (those grow); how many there were."""
    readers: dict[str, Callable[[Path], object]] = {
        ".npy": lambda path: np.load(path, allow_pickle=False),
        ".npz": lambda path: dict(np.load(path, allow_pickle=False)),
        ".json": lambda path: json.loads(path.read_text()),
        ".ckpt": lambda path: torch.load(path, weights_only=True),
        ".ply": read_mesh,
        ".exr": read_exr,
        ".yml": read_config,
    }
    count = 0
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix in readers:
            readers[path.suffix](path)
            count += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", ["register", "train", "export", "eval", "suite", "prepare"])
def test_a_kill_leaves_nothing_half_and_the_next_start_ends_well(name: str, place: Place, tmp_path: Path):
    begun = time.monotonic()
    assert run(place.command(name, tmp_path / "whole")) == 0
    takes, files = time.monotonic() - begun, check_whole(tmp_path / "whole")
    assert files > 0
    # The first third of a command's time goes into imports, in which nothing can break.
    moments = np.random.default_rng(len(name)).uniform(0.3, 1.0, KILLS) * takes
    with ThreadPoolExecutor(LANES) as lanes:
        found = lanes.map(lambda i: killed_in(place, name, tmp_path / f"out{i}", moments[i::LANES]), range(LANES))
        killed, beside = zip(*found)
        print(f"{name}: {sum(killed)} of {KILLS} starts killed")  # shown by `pytest -s` or `-rP`
        assert sum(killed) >= KILLS // 2  # a quieter machine may have finished some
        ends = list(lanes.map(lambda i: run(place.command(name, tmp_path / f"out{i}")), range(LANES)))
    assert ends == [0] * LANES
    for i in range(LANES):
        assert check_whole(tmp_path / f"out{i}") >= files
    # What a killed one leaves beside its folder, each start removes from the one before.
    assert max(beside) == (1 if name == "prepare" else 0)
    assert not list(tmp_path.glob(".out*"))


def killed_in(place: Place, name: str, out: Path, moments: np.ndarray) -> tuple[int, int]:
    """Start a command again and again in one folder and kill it at these moments, in seconds.

    Returns:
        How often it was killed, and the most that one left beside its folder.
    """
    killed, beside = 0, 0
    for moment in moments:
        killed += run(place.command(name, out), float(moment)) == -signal.SIGKILL
        check_whole(out)
        if name == "prepare" and out.exists():
            assert read_scene(out).num_views == 8  # a scene or none
        beside = max(beside, len(list(out.parent.glob(f".{out.name}.*"))))
    return killed, beside
