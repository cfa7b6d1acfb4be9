# SPDX-License-Identifier: Apache-2.0
"""One short trained run for all tests of a session, also if several workers of pytest-xdist run them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock


@dataclass(frozen=True)
class TrainedRun:
    """A synthetic scene, a run on its given poses, and the run's evaluation. Not to be changed by tests."""

    folder: Path

    shape = "blob"

    @property
    def scene(self) -> Path:
        """Scene folder with ground truth, depth maps and no photographs: six views of 48x40 pixels."""
        return self.folder / "scene"

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.folder / "test" / "pmni-calibrated" / "run"

    @property
    def config(self) -> Path:
        """Configuration of the run."""
        return self.run / "config.yml"

    @property
    def result(self) -> Path:
        """Output folder of `pmni eval`."""
        return self.folder / "result"


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """The run; its surface has a mean error of 0.4% of the unit sphere's radius."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained_run"
    with FileLock(f"{folder}.lock"):
        found = TrainedRun(folder)
        if not (folder / "done").exists():
            _train(found)
            (folder / "done").touch()
    return found


def _train(made: TrainedRun) -> None:
    from helpers.training import make_config, set_up
    from pmni_nerfstudio import cli
    from pmni_nerfstudio.commands.synth import SynthCommand

    size = {"views": 6, "width": 48, "height": 40, "mesh_resolution": 64}
    SynthCommand(out=made.scene, shape=made.shape, depth_maps=True, **size).main()
    set_up(make_config("pmni-calibrated", made.scene, made.folder, 60)).train()
    options = ["--output-dir", str(made.result), "--resolution", "64"]
    cli.main(["eval", "--load-config", str(made.config), *options])
