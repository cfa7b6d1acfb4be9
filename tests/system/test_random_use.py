# SPDX-License-Identifier: Apache-2.0
"""Trainings whose page is used at random moments, most of them interrupted at one: nothing is lost, and no traceback."""

from __future__ import annotations

import os
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from helpers import random_buttons
from helpers.programs import Ended, Program, run
from helpers.serving import free_port

from pmni_nerfstudio.commands.synth import SynthCommand

RUNS = int(os.environ.get("PMNI_RANDOM_RUNS", "30"))
STEPS = 60
PATIENCE = 240.0
NOISE = ("Traceback", "KeyboardInterrupt", "leaked", "Exception ignored", "Exception in thread")


def words(scene: Path, out: Path, seed: int) -> list[str | Path]:
    """A training whose page is used."""
    options = ["--output-dir", str(out), "--experiment-name", "e", "--timestamp", "t", "--steps-per-save", "20"]
    page = ["--vis", "viewer+tensorboard", "--viewer.websocket-port", str(free_port())]
    length = ["--max-num-iterations", str(STEPS), "--pipeline.model.converged-normals-deg", "0"]
    return ["python", random_buttons.__file__, str(seed), "pmni", "--data", str(scene), *options, *page, *length]


def check(folder: Path, ended: Ended, interrupted: bool) -> int:
    """Check what a run has left: whole files, no traces; the number of steps that are kept."""
    assert ended.code in ((0, 130) if interrupted else (0,)), ended.output[-3000:]
    assert not [noise for noise in NOISE if noise in ended.output], ended.output[-6000:]
    leftovers = [path for path in folder.rglob(".*") if path.is_file() and path.suffix in (".ckpt", ".ply", ".tmp")]
    assert leftovers == [] and not list(folder.rglob(".checkpoint-*"))
    assert all(trimesh.load(path, process=False).is_watertight for path in folder.glob("e/pmni/t/mesh-*.ply"))
    saved = list(folder.glob("e/pmni/t/nerfstudio_models/*.ckpt"))
    assert len(saved) <= 1
    kept = torch.load(saved[0], weights_only=True)["step"] + 1 if saved else 0
    if ended.code == 0:
        assert kept == STEPS
        return kept
    last = ended.stderr.splitlines()[-1]
    stopped = re.match(r"stopped at step (\d+); go on with: ", last)
    if stopped is None:
        assert re.match(r"(stopped before the first step; go on|stopped; start again) with: ", last), last
        assert kept == 0
    else:
        assert kept == int(stopped.group(1))
    return kept


@pytest.mark.slow
@pytest.mark.exhaustive
def test_random_buttons_and_interrupts_lose_nothing(tmp_path: Path):
    scene = tmp_path / "scene"
    SynthCommand(out=scene, views=6, width=48, height=40, mesh_resolution=32, rotation_noise_deg=3).main()
    run(["pmni", "--version"])  # the imports of all programs, which no time below should include
    start = time.monotonic()
    check(tmp_path / "whole", Program(words(scene, tmp_path / "whole", RUNS)).wait(PATIENCE), interrupted=False)
    whole = time.monotonic() - start
    kept: list[int] = []
    for seed in range(RUNS):
        out, rng = tmp_path / str(seed), np.random.default_rng(seed)
        command = words(scene, out, seed)
        program = Program(command)
        interrupted = seed % 4 != 0
        if interrupted:
            program.process.join(rng.uniform(0.1, 0.9) * whole)
            if program.process.is_alive():
                program.interrupt()
        ended = program.wait(PATIENCE)
        kept.append(check(out, ended, interrupted))
        print(f"run {seed}: exit code {ended.code}, {kept[-1]} steps kept", flush=True)
        if ended.code == 130 and kept[-1] > 0 and seed % 3 == 0:  # and it goes on
            resumed = shlex.split(ended.stderr.splitlines()[-1].split("with: ")[1])
            again = run([*command[:3], *resumed[1:]], PATIENCE)
            assert check(out, again, interrupted=False) == STEPS
    assert any(0 < steps < STEPS for steps in kept) or RUNS < 30
