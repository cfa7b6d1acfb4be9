# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C of real training processes: what was made is kept, the printed command goes on, and nothing else is printed."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.programs import Program, run

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.interrupts import command_to_resume, exit_before_training

PATIENCE = 120.0
NOISE = ("Traceback", "KeyboardInterrupt", "leaked", "Exception ignored")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small views with rough poses."""
    folder = tmp_path_factory.mktemp("scene")
    SynthCommand(out=folder, views=8, width=48, height=40, mesh_resolution=32, rotation_noise_deg=3).main()
    return folder


def words(scene: Path, out: Path, *more: str) -> list[str]:
    """A training command, which would last for hours."""
    options = ["--output-dir", str(out), "--experiment-name", "e", "--vis", "tensorboard"]
    forever = ["--max-num-iterations", "1000000", "--pipeline.model.converged-normals-deg", "0"]
    return ["ns-train", "pmni", "--data", str(scene), *options, *forever, *more]


def interrupted(program: Program, when: Callable[[], bool]) -> str:
    """Press Ctrl-C at a moment, and wait for the end; the program's last line on stderr."""
    start = time.monotonic()
    while not when():
        assert program.process.is_alive(), program.output[-3000:]
        assert time.monotonic() - start < PATIENCE
        time.sleep(0.05)
    program.interrupt()
    ended = program.wait(PATIENCE)
    assert ended.code == 130, ended.output[-3000:]
    assert not [noise for noise in NOISE if noise in ended.output], ended.output[-3000:]
    return ended.stderr.splitlines()[-1]


def test_ctrl_c_before_there_is_a_trainer_ends_with_one_line(tmp_path: Path):
    started = words(tmp_path / "scene", tmp_path)
    program = Program(started)
    last = interrupted(program, lambda: True)
    assert last == f"stopped; start again with: {shlex.join(started)}"
    assert program.output.strip() == last


def test_ctrl_c_in_a_finalizer_ends_the_process_before_there_is_a_trainer(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys\n"
        "from pmni_nerfstudio.interrupts import exit_before_training\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['ns-train', 'pmni']\n"
        "exit_before_training()\n"
        "class Pressed:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "Pressed()\n"
        "print('went on')\n"
    )
    ended = run(["python", program])
    assert (ended.code, ended.stdout, ended.stderr) == (130, "", "stopped; start again with: ns-train pmni\n")


@pytest.mark.parametrize("argv", [["ns-train", "nerfacto"], ["ns-train"], ["pytest", "pmni"]])
def test_ctrl_c_of_other_programs_and_methods_stays_as_it_is(argv: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", argv)
    before = signal.getsignal(signal.SIGINT)
    exit_before_training()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_ends_a_subcommand_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def press(self: SynthCommand) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SynthCommand, "main", press)
    with pytest.raises(SystemExit) as exit:
        main(["synth", str(tmp_path)])
    assert exit.value.code == 130 and capsys.readouterr().err == "pmni synth: stopped\n"


@pytest.mark.slow
def test_ctrl_c_during_training_saves_and_prints_the_command_that_goes_on(scene: Path, tmp_path: Path):
    program = Program(words(scene, tmp_path))
    last = interrupted(program, lambda: "Training: " in program.output)
    said, command = last.split("; go on with: ")
    steps = int(said.removeprefix("stopped at step "))
    (saved,) = tmp_path.glob("e/pmni/*/nerfstudio_models/*.ckpt")
    assert steps > 0 and torch.load(saved, weights_only=True)["step"] == steps - 1
    again = [*shlex.split(command), "--timestamp", "on"]
    again[again.index("1000000")] = str(steps + 5)
    ended = run(again)
    assert ended.code == 0, ended.output[-3000:]
    (resumed,) = tmp_path.glob("e/pmni/on/nerfstudio_models/*.ckpt")
    assert torch.load(resumed, weights_only=True)["step"] == steps + 4


def test_the_command_that_goes_on_replaces_earlier_options_of_the_kind():
    started = ["/bin/ns-train", "pmni", "--data", "a b", "--load_dir=old", "--load-step", "3", "--vis", "tensorboard"]
    assert command_to_resume("pmni", None, Path("out"), started) == (
        "ns-train pmni --load-dir out --data 'a b' --vis tensorboard"
    )
    assert command_to_resume("pmni", None, None, started) == shlex.join(["ns-train", *started[1:]])
    assert command_to_resume("pmni", Path("x"), Path("out"), ["pytest"]) == "ns-train pmni --load-dir out --data x"


@pytest.mark.slow
def test_ctrl_c_during_registration_keeps_the_coarse_result_for_the_same_command(scene: Path, tmp_path: Path):
    program = Program(words(scene, tmp_path))
    last = interrupted(program, lambda: bool(list(tmp_path.glob("e/pmni/registrations/*-coarse.npz"))))
    said, command = last.split("; go on with: ")
    assert said == "stopped before the first step"
    assert shlex.split(command) == words(scene, tmp_path)
    assert not list(tmp_path.glob("e/pmni/*/nerfstudio_models"))
    again = shlex.split(command)
    again[again.index("1000000")] = "3"
    ended = run(again)
    assert ended.code == 0, ended.output[-3000:]
    assert "Registration: goes on from" in ended.stdout and "depth maps" not in ended.stdout
    assert not list(tmp_path.glob("e/pmni/registrations/*-coarse.npz"))
    assert len(list(tmp_path.glob("e/pmni/registrations/*.npz"))) == 1
    ended = run(again)
    assert ended.code == 0 and "Registration: loaded from" in ended.stdout


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(scene: Path, tmp_path: Path):
    program = Program(words(scene, tmp_path, "--pipeline.datamanager.train-num-rays-per-batch", "262144"))
    start = time.monotonic()
    while not list(tmp_path.glob("e/pmni/*/dataparser_transforms.json")):
        assert program.process.is_alive() and time.monotonic() - start < PATIENCE, program.output[-3000:]
        time.sleep(0.02)
    program.interrupt()
    time.sleep(0.2)
    program.interrupt()
    ended = program.wait(PATIENCE)
    assert ended.code == 130 and ended.stderr.endswith("stopped at once\n"), ended.output[-3000:]
    assert not [noise for noise in NOISE if noise in ended.output]
