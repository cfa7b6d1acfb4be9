# SPDX-License-Identifier: Apache-2.0
"""Commands, links and pictures of README.md and docs/*.md: commands run on a small scene, all of their options exist."""

from __future__ import annotations

import argparse
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import tyro
from helpers.documentation import (
    PAGES,
    ROOT,
    anchors_in,
    commands_in,
    documented_command,
    documented_commands,
    links_in,
    words_of,
)
from helpers.photographs import take_photographs
from helpers.photometric import make_capture
from helpers.programs import run
from helpers.serving import served
from helpers.trained_run import TrainedRun

from pmni_nerfstudio import cli
from pmni_nerfstudio.data.scene import read_scene

TINY_TRAIN = "--max-num-iterations 20 --vis tensorboard --output-dir OUT/runs"
RUN = {
    "pmni synth": "--views 6 --width 48 --height 40 --mesh-resolution 48",
    "pmni export": "--resolution 64",
    "pmni eval": "--resolution 64",
    "pmni report": "",
    "pmni asset": "--faces 500 --texture-size 128",
    "pmni convert": "",
    "pmni prepare": "--fov 8 --axes camera",
    "pmni photometric": "",
    "pmni register": "",
    "pmni check": "--output OUT/check.png",
    "pmni integrate": "--max-rounds 5 --overwrite",
    "ns-train pmni": TINY_TRAIN,
    "ns-train pmni-calibrated": TINY_TRAIN,
    "ns-train pmni-original": f"{TINY_TRAIN} --pipeline.datamanager.train-num-rays-per-batch 450",
    "ns-train neus-facto-small": TINY_TRAIN,
    "python examples/01_picture.py": "",
    "python examples/02_render_novel_views.py": "--views 3",
    "python examples/03_sample_surface.py": "--count 2000",
    "python examples/04_query_sdf.py": "",
    "python examples/06_poses_to_colmap.py": "",
    "python examples/07_plot_training.py": "",
    "python examples/10_onnx_sphere_tracing.py": "",
    "python benchmarks/run_all.py": "--quick --only bench_integration.py",
    "python benchmarks/bench_cuda.py": "--device cpu --steps 4 --views 4 --width 48 --height 40 --rays 450",
}
"""Commands that run here, with the options that make each of them quick."""
SERVERS = {"pmni view": "--port"}
"""Commands that serve a page until they are stopped, with the option that takes the port."""
ELSEWHERE = (
    "ns-viewer",
    "ns-export",
    "ns-eval",
    "ns-render",
    "pmni compare",
    "pmni suite",
    "pmni objects",
    "pmni sequence",
)
"""Commands that test_nerfstudio_tools.py, test_studies.py, test_objects_command.py and test_sequence_command.py run."""
QUICK = (
    "pmni synth",
    "pmni eval",
    "pmni export",
    "pmni check",
    "pmni integrate",
    "pmni prepare",
    "pmni report",
    "pmni convert",
    "pmni photometric",
)
BENCHMARKS: dict[str, list[str]] = runpy.run_path(str(ROOT / "benchmarks" / "run_all.py"))["SCRIPTS"]
"""Scripts of run_all.py, with the options that make each of them quick."""


class Workspace:
    """Files and folders for DIR, CONFIG, OUT, RUN, SDF, SRC, CAPTURE and points.npy."""

    def __init__(self, folder: Path, trained: TrainedRun) -> None:
        self.folder, self.trained = folder, trained
        for name, source in (("scene", trained.scene), ("out", trained.result)):
            shutil.copytree(source, folder / name)
        for name in ("mask", "normal_camera_space_GT"):
            shutil.copytree(trained.scene / name, folder / "plain" / name)
        make_capture().write_folders(folder / "capture")
        take_photographs(read_scene(folder / "scene"), trained.shape)
        np.save(folder / "points.npy", np.random.default_rng(0).uniform(-30, 30, (100, 3)))
        cli.main(self.words("pmni convert DIR --to sdfstudio --output-dir SDF")[1:])
        cli.main(self.words("pmni export --load-config CONFIG --output-dir OUT --format onnx")[1:])

    def words(self, command: str) -> list[str]:
        """Words of a command with these paths."""
        # A new scene goes into a folder of its own, since other commands have written into the common one.
        is_new = command.startswith(("pmni synth", "pmni prepare", "pmni photometric"))
        substitutions = {
            "DIR": Path(tempfile.mkdtemp(dir=self.folder)) if is_new else self.folder / "scene",
            "CONFIG": self.trained.config,
            "OUT": self.folder / "out",
            "RUN": self.trained.run,
            "SDF": self.folder / "sdf",
            "SRC": self.folder / "plain",
            "CAPTURE": self.folder / "capture",
            "points.npy": self.folder / "points.npy",
        }
        return words_of(command, substitutions)


@pytest.fixture(scope="module")
def workspace(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("documentation"), trained_run)


# ---- commands -------------------------------------------------------------------------------------------------------


def test_commands_of_a_page_are_found():
    page = """
Text, `pmni view`.

    pmni report OUT    # indented

```bash
# a comment
git clone URL
ns-train pmni --data DIR \\
    --vis viewer
```
```console
$ make demo
pmni prepare SRC DIR  # twice
```
```yaml
pmni: no command
```
"""
    expected = ["ns-train pmni --data DIR --vis viewer", "make demo", "pmni prepare SRC DIR", "pmni report OUT"]
    assert [" ".join(command.split()) for command in commands_in(page)] == expected


def test_every_subcommand_is_documented():
    for name in cli.SUBCOMMANDS:
        documented_command(f"pmni {name}")


@pytest.mark.parametrize(
    "name", [name if name.startswith(QUICK) else pytest.param(name, marks=pytest.mark.slow) for name in RUN]
)
def test_command_runs(name: str, workspace: Workspace):
    words = workspace.words(f"{documented_command(name)} {RUN[name]}")
    ended = run(words, folder=ROOT)
    assert ended.code == 0, ended.output[-4000:]


@pytest.mark.parametrize("name", SERVERS)
def test_server_runs(name: str, workspace: Workspace):
    words = workspace.words(documented_command(name))
    with served(words, SERVERS[name], code=0) as url, urlopen(url, timeout=5) as page:
        assert "<html" in page.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bench_training.py", "bench_encodings.py"])
def test_benchmark_runs(name: str):
    """The others train many times; run_all.py runs bench_integration.py above."""
    ended = run(["python", f"benchmarks/{name}", *BENCHMARKS[name]], folder=ROOT)
    assert ended.code == 0, ended.output[-4000:]


@pytest.mark.parametrize("command", documented_commands())
def test_options_of_a_command_exist(command: str):
    program, *arguments = shlex.split(command)
    if program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        return
    known = (*RUN, *SERVERS, *ELSEWHERE, "python scripts/", "python -m pmni_nerfstudio", *map(bench_name, BENCHMARKS))
    assert command.startswith(known), "add the command to RUN, SERVERS or ELSEWHERE, so that a test runs it"
    try:
        parse(program, arguments)
    except SystemExit as end:
        assert end.code in (0, None), f"the command's own parser refuses {command}"


def bench_name(script: str) -> str:
    return f"python benchmarks/{script}"


def parse(program: str, arguments: list[str]) -> None:
    """Parse arguments as a program would, without doing anything.

    Raises:
        SystemExit: the program has no such arguments.
    """
    if program in ("pmni", "ns-train"):
        parser_of(program, arguments[0]).parse_args(arguments[1:])
    elif program.startswith("ns-"):
        parser_of(program).parse_args(arguments)
    elif arguments[0] == "-m":
        assert arguments[1] == "pmni_nerfstudio"
        cli.main(arguments[2:])
    elif arguments[0].startswith("scripts/"):
        assert (ROOT / arguments[0]).is_file()
    elif arguments[0].startswith("examples/"):
        tyro.extras.get_parser(runpy.run_path(str(ROOT / arguments[0]))["main"]).parse_args(arguments[1:])
    else:
        parse_with_argparse(ROOT / arguments[0], arguments[1:])


@lru_cache
def parser_of(program: str, name: str = "") -> argparse.ArgumentParser:
    """Parser of a program, and of one of its subcommands or methods."""
    if program == "pmni":
        return tyro.extras.get_parser(cli.command_class(name))
    if program == "ns-train":
        from nerfstudio.configs.method_configs import all_methods

        # As in nerfstudio's command line, flags have a value: True or False.
        as_in_nerfstudio = tyro.conf.FlagConversionOff[type(all_methods[name])]
        return tyro.extras.get_parser(as_in_nerfstudio, default=all_methods[name])
    from nerfstudio.scripts import eval as evaluation
    from nerfstudio.scripts import exporter, render
    from nerfstudio.scripts.viewer import run_viewer

    commands = {
        "ns-export": exporter.Commands,
        "ns-render": render.Commands,
        "ns-eval": evaluation.ComputePSNR,
        "ns-viewer": run_viewer.RunViewer,
    }
    return tyro.extras.get_parser(commands[program])


def parse_with_argparse(script: Path, arguments: list[str]) -> None:
    """Run a script until it has parsed its arguments."""

    class Parsed(Exception):
        pass

    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser) -> None:
        original(parser, arguments)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.syspath_prepend(str(script.parent))
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize(
    "command", ["pmni eval --no-such 3", "ns-train pmni --no-such 3", "python benchmarks/run_all.py --no-such"]
)
def test_an_unknown_option_is_noticed(command: str):
    program, *arguments = command.split()
    with pytest.raises(SystemExit) as end:
        parse(program, arguments)
    assert end.value.code == 2


# ---- links and pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path):
    for target in links_in(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_in(file.read_text(encoding="utf-8")), target


def test_pictures_are_small():
    pictures = [
        page.parent / target
        for page in PAGES
        for target in links_in(page.read_text(encoding="utf-8"))
        if target.endswith((".png", ".jpg", ".gif", ".svg"))
    ]
    assert pictures
    for picture in pictures:
        assert 0 < picture.stat().st_size < 300_000, picture
