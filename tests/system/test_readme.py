# SPDX-License-Identifier: Apache-2.0
"""Every command of README.md runs, on a small scene: its code blocks are read, and each line is run as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from helpers.photographs import take_photographs
from helpers.readme import ROOT, readme_commands, words_of
from helpers.serving import served
from helpers.training import make_config, set_up

from pmni_nerfstudio import cli
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.scene import read_scene

TINY_TRAIN = "--max-num-iterations 20 --vis tensorboard --output-dir OUT/runs"

EXTRA = {
    "pmni synth": "--views 6 --width 48 --height 40 --mesh-resolution 48",
    "pmni export": "--resolution 64",
    "pmni eval": "--resolution 64",
    "pmni report": "",
    "pmni convert": "",
    "pmni prepare": "--fov 8 --axes camera",
    "pmni register": "",
    "pmni integrate": "--max-rounds 5 --overwrite",
    "ns-train pmni": TINY_TRAIN,
    "ns-train pmni-calibrated": TINY_TRAIN,
    "ns-train pmni-original": f"{TINY_TRAIN} --pipeline.datamanager.train-num-rays-per-batch 450",
    "ns-train neus-facto-small": TINY_TRAIN,
    "python examples/01_picture.py": "",
    "python examples/02_render_novel_views.py": "--views 3",
    "python examples/03_sample_surface.py": "--count 2000",
    "python examples/04_query_sdf.py": "",
    "python examples/05_mesh_formats.py": "",
    "python examples/06_poses_to_colmap.py": "",
    "python examples/07_plot_training.py": "",
    "python examples/08_texture.py": "--faces 2000 --size 256",
    # The other two train a dozen times: ten minutes.
    "python benchmarks/run_all.py": "--quick --only bench_training.py bench_encodings.py bench_integration.py",
    "python benchmarks/bench_cuda.py": "--device cpu --steps 10 --views 6 --width 60 --height 50 --rays 450",
}
"""Commands that this test knows, with what makes each of them quick."""
BUILDS = ("make demo", "make test")
"""These run this very test, or train for minutes: make tells what they would do, and that all of it exists."""
SERVERS = {"pmni view": "--port"}
"""These serve a page until they are stopped; the option of its port."""
ELSEWHERE = ("ns-viewer", "ns-export", "ns-eval", "ns-render", "pmni compare", "pmni suite")
"""These are run by test_nerfstudio_tools.py and test_studies.py, which look at what they make."""
QUICK = ("make", "pmni synth", "pmni eval", "pmni export", "pmni integrate", "pmni prepare")
"""What begins so takes a few seconds."""


def known_as(command: str) -> str | None:
    """The longest name in this test's lists that the command begins with."""
    names = [name for name in (*EXTRA, *BUILDS, *SERVERS, *ELSEWHERE) if f"{command} ".startswith(f"{name} ")]
    return max(names, key=len, default=None)


@dataclass
class Place:
    """What DIR, CONFIG, OUT, RUN, SDF, SRC and points.npy stand for."""

    folder: Path

    def words(self, command: str) -> list[str]:
        """The command's words, with the programs of this environment."""
        # a new scene goes into a folder of its own: later commands have left files in the common one
        scene = tempfile.mkdtemp(dir=self.folder) if command.startswith("pmni synth") else self.folder / "scene"
        run = self.folder / "test" / "pmni-calibrated" / "run"
        stand_for = {
            "DIR": Path(scene),
            "CONFIG": run / "config.yml",
            "OUT": self.folder / "out",
            "RUN": run,
            "SDF": self.folder / "sdf",
            "SRC": self.folder / "plain",
            "points.npy": self.folder / "points.npy",
        }
        return words_of(command, stand_for)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A scene in DIR, a run of it at CONFIG, and what was exported of that in OUT."""
    found = Place(tmp_path_factory.mktemp("readme"))
    SynthCommand(out=found.folder / "scene", views=6, width=48, height=40, mesh_resolution=48, depth_maps=True).main()
    trainer = set_up(make_config("pmni-calibrated", found.folder / "scene", found.folder, 60))
    trainer.train()
    cli.main(found.words("pmni eval --load-config CONFIG --output-dir OUT --resolution 64")[1:])
    cli.main(found.words("pmni convert DIR --to sdfstudio --output-dir SDF")[1:])
    np.save(found.folder / "points.npy", np.random.default_rng(0).uniform(-30, 30, (100, 3)))
    for name in ("mask", "normal_camera_space_GT"):
        shutil.copytree(found.folder / "scene" / name, found.folder / "plain" / name)
    take_photographs(read_scene(found.folder / "scene"), SynthCommand.shape)
    return found


def test_readme_holds_commands_and_this_test_knows_them_all():
    commands = readme_commands()
    assert len(commands) >= 10
    unknown = [command for command in commands if known_as(command) is None]
    assert not unknown, f"README.md has commands that this test doesn't run: {unknown}"
    # and the other way round: every subcommand of ours is in the README
    for name in cli.SUBCOMMANDS:
        assert any(command.startswith(f"pmni {name} ") for command in commands), f"README.md lacks pmni {name}"


def test_readme_s_files_exist():
    text = (ROOT / "README.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures
    for picture in pictures:
        assert 0 < (ROOT / picture).stat().st_size < 300_000


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[] if command.startswith(QUICK) else pytest.mark.slow)
        for command in readme_commands()
        if known_as(command) not in ELSEWHERE
    ],
)
def test_command_runs(command: str, place: Place):
    name = known_as(command)
    assert name is not None
    if name in BUILDS:
        subprocess.run(["make", "--dry-run", *command.split()[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    if name in SERVERS:
        with served(place.words(command), SERVERS[name], code=0) as url, urlopen(url, timeout=5) as page:
            assert "<html" in page.read().decode()
        return
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    words = place.words(f"{command} {EXTRA[name]}")
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
