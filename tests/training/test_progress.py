# SPDX-License-Identifier: Apache-2.0
"""Console without a terminal: a line at each tenth of registration and training, and a summary at the end."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers.programs import run
from nerfstudio.engine.trainer import writer  # not from where it is: that module must not be imported first
from rich.console import Console

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.registration.console import ProgressLines
from pmni_nerfstudio.training import progress
from pmni_nerfstudio.training.controller import RunController
from pmni_nerfstudio.training.progress import RunMessages


def test_lines_at_new_stages_and_tenths_only():
    out = io.StringIO()
    lines = ProgressLines(Console(file=out, width=20), "Registration")
    for stage, done in [("a", 0.0), ("a", 0.05), ("a", 0.11), ("b", 0.12), ("b", 0.19), ("b", 0.2), ("b", 1.0)]:
        lines(stage, done, 0.25)
    assert out.getvalue().splitlines() == [
        f"Registration: {percent}%, {stage}, residual 0.25"
        for stage, percent in [("a", 0), ("a", 11), ("b", 12), ("b", 20), ("b", 100)]
    ]


def test_stages_without_a_residual_print_none():
    out = io.StringIO()
    ProgressLines(Console(file=out, width=20), "Registration")("depth maps", 0.0, float("nan"))
    assert out.getvalue() == "Registration: 0%, depth maps\n"


def test_the_remaining_time_counts_to_the_end_of_the_schedule_and_then_to_the_maximum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    buffer: dict[str, Any] = {"max_iter": 2000, "max_buffer_size": 1, "events": {}}
    storage: list[dict[str, Any]] = []
    monkeypatch.setattr(writer, "EVENT_STORAGE", storage)
    monkeypatch.setattr(writer, "GLOBAL_BUFFER", buffer)
    monkeypatch.setattr(progress, "GLOBAL_BUFFER", buffer)
    messages = RunMessages(cast(RunController, SimpleNamespace(schedule_steps=320, max_steps=2000)), tmp_path)
    for step in (100, 319):
        messages.report_step(step)
        writer.put_time("step", 0.5, step, update_eta=True)  # as nerfstudio does after each step
    assert [event["event"] for event in storage if event["name"] == writer.EventName.ETA.value] == [110.0, 840.5]


@pytest.mark.slow
def test_a_run_in_a_pipe_prints_its_progress_and_what_it_made(tmp_path: Path):
    scene = tmp_path / "scene"
    SynthCommand(out=scene, views=6, width=48, height=40, mesh_resolution=32, rotation_noise_deg=3).main()
    options = ["--output-dir", "runs", "--experiment-name", "e", "--timestamp", "t", "--max-num-iterations", "20"]
    ended = run(["ns-train", "pmni", "--data", str(scene), *options], folder=tmp_path)
    assert ended.code == 0, ended.output[-3000:]
    lines = ended.stdout.splitlines()
    registration = [line for line in lines if re.match(r"Registration: \d+%, ", line)]
    training = [line for line in lines if re.match(r"Training: \d+%, step \d+ of 20", line)]
    assert len(registration) > 3 and 10 <= len(training) <= 11 and "\x1b" not in ended.stdout
    first = next(i for i, line in enumerate(lines) if line.startswith("Made: "))
    made, place, verdict, command = lines[first : first + 4]
    assert made == "Made: a surface and the cameras of 6 views, after 20 steps"
    assert place.startswith("In: ") and (tmp_path / place.removeprefix("In: ") / "config.yml").is_file()
    assert verdict.startswith("Verdict: registration ") and "training" in verdict
    assert command == ("Next: pmni export --load-config runs/e/pmni/t/config.yml --output-dir runs/e/pmni/t/result")
    assert run(command.removeprefix("Next: ").split() + ["--resolution", "32"], folder=tmp_path).code == 0
