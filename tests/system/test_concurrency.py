# SPDX-License-Identifier: Apache-2.0
"""Several programs at once on one scene or in one folder: all succeed, or one reports the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.importer_files import write_maps
from helpers.programs import Ended, Program
from helpers.scenes import make_tilted_ellipsoid
from rich.console import Console

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.atomic import replaced_folders
from pmni_nerfstudio.data.folder_lock import lock_folder
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.registration.cache import load_registration
from pmni_nerfstudio.studies.job import Job
from pmni_nerfstudio.studies.running import run_jobs


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    SynthCommand(out=folder, views=6, width=48, height=40, mesh_resolution=32, rotation_noise_deg=3).main()
    return folder


def at_once(*commands: Sequence[str]) -> list[Ended]:
    """Run commands at the same time."""
    programs = [Program(command) for command in commands]
    return [program.wait(600) for program in programs]


def train(scene: Path, out: Path) -> list[str]:
    fixed = ["--vis", "tensorboard", "--experiment-name", "e", "--timestamp", "t", "--max-num-iterations", "3"]
    return ["ns-train", "pmni", "--data", str(scene), "--output-dir", str(out), *fixed, "--steps-per-save", "1"]


def check_ended(*ends: Ended) -> None:
    for end in ends:
        assert end.code == 0, end.output[-4000:]


def check_run(out: Path, lone: Path) -> None:
    """Check that the last checkpoint and the registration equal those of a run on its own."""
    run, other = out / "e" / "pmni" / "t", lone / "e" / "pmni" / "t"
    states = [torch.load(next(r.glob("nerfstudio_models/*.ckpt")), weights_only=True) for r in (run, other)]
    assert states[0]["step"] == states[1]["step"]
    for name, value in states[1]["pipeline"].items():
        if torch.is_tensor(value):
            torch.testing.assert_close(states[0]["pipeline"][name], value, msg=name)
    (mine,), (its,) = (list(r.glob("registration/*")) for r in (run, other))
    assert mine.name == its.name
    np.testing.assert_allclose(load_registration(mine).c2w, load_registration(its).c2w, atol=1e-9)
    assert not list(run.glob(".*"))


@pytest.mark.slow
def test_three_trainings_of_one_scene(scene: Path, tmp_path: Path):
    """One in a folder of its own, and two in the same folder under the same timestamp."""
    check_ended(*at_once(train(scene, tmp_path / "lone")))
    before = sorted(path for path in scene.rglob("*"))
    check_ended(*at_once(*(train(scene, tmp_path / name) for name in ("other", "same", "same"))))
    for name in ("other", "same"):
        check_run(tmp_path / name, tmp_path / "lone")
    assert sorted(path for path in scene.rglob("*")) == before  # nothing is kept in the scene


@pytest.mark.slow
def test_two_registrations_into_one_folder(scene: Path, tmp_path: Path):
    def command(name: str) -> list[str]:
        return ["pmni", "register", str(scene), "--output-dir", str(tmp_path / name)]

    check_ended(*at_once(command("lone")), *at_once(command("same"), command("same")))
    files = sorted(path.name for path in (tmp_path / "same").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "lone").iterdir())
    for name in ("poses.npy", "surface.ply", "cameras_refined.npz", "transforms.json"):
        assert (tmp_path / "same" / name).stat().st_size == (tmp_path / "lone" / name).stat().st_size
    np.testing.assert_array_equal(*(np.load(tmp_path / name / "poses.npy") for name in ("same", "lone")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["integrate", "prepare"])
def test_two_that_make_the_same_folder(name: str, scene: Path, tmp_path: Path):
    """One of them may report that the other has already written the folder."""
    if name == "prepare":
        write_maps(tmp_path / "src", make_tilted_ellipsoid(), [f"{view:03d}" for view in range(8)])
        command = ["pmni", "prepare", str(tmp_path / "src"), str(tmp_path / "out"), "--focal", "300"]
    else:
        SynthCommand(out=tmp_path / "out", views=6, width=48, height=40, mesh_resolution=32).main()
        command = ["pmni", "integrate", str(tmp_path / "out")]
    ends = at_once(command, command)
    assert 0 in [end.code for end in ends]
    for end in ends:
        lines = [line for line in end.output.splitlines() if line.startswith("error:")]
        assert (end.code, len(lines)) in ((0, 0), (1, 1)) and "Traceback" not in end.output
    made = read_scene(tmp_path / "out")
    assert made.num_views == (8 if name == "prepare" else 6) and (name == "prepare" or made.depth_files is not None)
    assert not [path for path in tmp_path.rglob(".*") if path.is_dir()]


def test_a_second_one_that_replaces_a_folder_stops_and_the_first_is_not_disturbed(tmp_path: Path):
    target = tmp_path / "out"
    with replaced_folders([target]) as (fresh,):
        (fresh / "a").write_text("first")
        with pytest.raises(PmniError, match=f"^{target}: is being written by another process; wait until"):
            with replaced_folders([target]):
                pytest.fail("two at once")
        assert not target.exists()
    assert (target / "a").read_text() == "first"
    with replaced_folders([target]) as (fresh,):  # the first has ended
        (fresh / "a").write_text("second")
    assert (target / "a").read_text() == "second" and [path.name for path in tmp_path.iterdir()] == ["out"]


# ---- suites ---------------------------------------------------------------------------------------------------------

HOLDER = """
import subprocess, sys
from pathlib import Path
from rich.console import Console
from pmni_nerfstudio.studies.job import Job
from pmni_nerfstudio.studies.running import run_jobs

def run(jobs):
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, flush=True)
    child.wait()
    yield

run_jobs([Job("m", Path(sys.argv[1]))], Path(sys.argv[1]), run, Console(quiet=True), lambda method: None)
"""


def test_a_second_suite_in_a_folder_stops_and_a_killed_one_leaves_it_free(tmp_path: Path):
    def do() -> list:
        return run_jobs(
            [Job("m", tmp_path)], tmp_path, lambda jobs: (_ for _ in ()), Console(), lambda method: "no GPU"
        )

    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    child = int(first.stdout.readline())  # child process of the suite, still running when that is killed
    try:
        with pytest.raises(PmniError, match=rf"^{tmp_path}: is in use by process {first.pid} on .*; wait until"):
            do()
        first.send_signal(signal.SIGKILL)
        first.wait()
        os.kill(child, 0)  # it still runs, but does not hold the lock
        (outcome,) = do()
        assert outcome.reason == "no GPU"
        do()  # the lock is released at a normal end as well
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_locked_is_reported(tmp_path: Path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(PmniError, match=r"\.lock: can't be written .*give another --output-dir"), lock_folder(tmp_path):
        pass
