# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments of every command that writes: files with a final name are whole, and a restart succeeds."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.importer_files import write_transforms
from helpers.programs import Program, run
from helpers.scenes import make_tilted_ellipsoid

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.images import read_exr
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.training.trained_run import read_config

COMMANDS = ("train", "register", "export", "eval", "suite", "prepare")


@dataclass
class Workspace:
    """A scene, a finished run of it, and data in another layout."""

    folder: Path
    finished: dict[str, tuple[float, int]] = field(default_factory=dict)
    """CPU time in seconds that a command takes when left alone, and the number of files that it leaves."""

    @property
    def config(self) -> Path:
        """Configuration of the finished run."""
        return self.folder / "train" / "e" / "pmni" / "t" / "config.yml"

    def words(self, name: str, out: Path) -> list[str]:
        """A command that writes into a folder."""
        scene = str(self.folder / "scene")
        training = ["--vis", "tensorboard", "--experiment-name", "e", "--timestamp", "t", "--steps-per-save", "10"]
        of_run = ["--load-config", str(self.config), "--output-dir", str(out), "--resolution", "96"]
        return {
            "register": ["pmni", "register", scene, "--output-dir", str(out)],
            "train": ["ns-train", "pmni", "--data", scene, "--output-dir", str(out), *training]
            + ["--max-num-iterations", "40"],
            "export": ["pmni", "export", *of_run, "--maps"],
            "eval": ["pmni", "eval", *of_run],
            # Enlarged, so that most of its time is spent on writing.
            "prepare": ["pmni", "prepare", str(self.folder / "source"), str(out), "--overwrite", "--size", "576x480"],
            "suite": ["pmni", "suite", str(self.folder / "suite.yml"), "--output-dir", str(out), "--jobs", "1"],
        }[name]

    def finish(self, name: str) -> tuple[float, int]:
        """Run a command to its end, once; see `finished`. A suite, which takes longest, is estimated from a training."""
        if name == "suite":
            seconds, files = self.finish("train")
            return 1.5 * seconds, files  # its job trains from a hull and evaluates, and imports everything twice
        if name not in self.finished:
            ended, seconds = Program(self.words(name, self.folder / name)).watch()
            assert ended.code == 0
            self.finished[name] = seconds, count_whole_files(self.folder / name)
        return self.finished[name]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("kills")
    SynthCommand(out=folder / "scene", views=6, width=48, height=40, mesh_resolution=32, rotation_noise_deg=3).main()
    (folder / "suite.yml").write_text(
        "scenes: [scene]\nseeds: [1]\neval: [--resolution, '96']\n"
        "methods: [{name: pmni-calibrated, flags: [--max-num-iterations, 15, --pipeline.model.start, hull]}]\n"
    )
    write_transforms(folder / "source", make_tilted_ellipsoid())
    assert run(["pmni", "--version"]).code == 0  # the imports of all programs, which no time below should include
    found = Workspace(folder)
    found.finish("train")
    return found


def count_whole_files(folder: Path) -> int:
    """Read every file that isn't hidden and no event log (those grow), and return their number."""
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


def was_killed(words: list[str], cpu_seconds: float) -> bool:
    """Run a command, and kill it after this CPU time; whether it was still running then."""
    return Program(words).watch(cpu_seconds)[0].code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(9, marks=pytest.mark.exhaustive)], ids=["two_kills", "nine_kills"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_leaves_no_partial_file_and_a_restart_succeeds(
    name: str, kills: int, workspace: Workspace, tmp_path: Path
):
    seconds, files = workspace.finish(name)
    assert files > 0
    out = tmp_path / "out"
    moments = np.random.default_rng(len(name)).uniform(0.3, 0.9, kills) * seconds
    killed, beside, share = 0, 0, 1.0
    for moment in moments:
        if was_killed(workspace.words(name, out), share * float(moment)):
            killed += 1
        else:  # it needed less time than when it was timed: start over, and kill earlier from now on
            count_whole_files(out)
            shutil.rmtree(out)
            share /= 2
            killed += was_killed(workspace.words(name, out), share * float(moment))
        count_whole_files(out)
        if name == "prepare" and out.exists():
            assert read_scene(out).num_views == 8  # a whole scene or none
        beside = max(beside, len(list(tmp_path.glob(".out.*"))))
    assert killed >= kills // 2
    assert run(workspace.words(name, out)).code == 0
    assert count_whole_files(out) >= files
    # Each start removes what a killed one left beside its folder.
    assert beside == (1 if name == "prepare" else 0)
    assert not list(tmp_path.glob(".out*"))
