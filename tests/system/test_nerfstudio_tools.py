# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's own exporters, evaluation, renders and viewer on a trained run, without a GPU, as documented."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trimesh
from helpers.browser import Opened, lit
from helpers.browser import live as browser_page  # noqa: F401
from helpers.documentation import documented_command, words_of
from helpers.programs import run as run_program
from helpers.scenes import SPHERE_CENTER, SPHERE_RADIUS, make_sphere
from helpers.serving import served
from helpers.training import make_config, set_up

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a short run on the sphere."""
    folder = tmp_path_factory.mktemp("run")
    make_sphere().write(folder / "sphere")
    trainer = set_up(make_config("pmni-calibrated", folder / "sphere", folder, 200))
    trainer.train()
    return trainer.base_dir / "config.yml"


def radii(vertices: np.ndarray) -> np.ndarray:
    """Distances from the sphere's center, in units of its radius: nerfstudio exports into the unit-sphere world."""
    return np.linalg.norm(vertices - SPHERE_CENTER, axis=1) / SPHERE_RADIUS


def exported_mesh(path: Path) -> trimesh.Trimesh:
    mesh = trimesh.load_mesh(path)
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


def check_cloud(out: Path) -> None:
    cloud = trimesh.load(out / "point_cloud.ply")
    assert isinstance(cloud, trimesh.PointCloud) and len(cloud.vertices) >= 5000
    assert np.abs(radii(cloud.vertices) - 1).mean() < 0.01
    assert radii(cloud.vertices).max() < 1.1  # none of the background


def check_mesh(out: Path, name: str, slack: float) -> None:
    """The mesh lies on the sphere with its normals outward; parts that no camera sees may be open."""
    mesh = exported_mesh(out / name)
    assert np.abs(radii(mesh.vertices) - 1).mean() < slack / 2
    assert np.quantile(np.abs(radii(mesh.vertices) - 1), 0.99) < slack
    outward = ((mesh.triangles_center - SPHERE_CENTER) * mesh.face_normals).sum(axis=1) > 0
    assert outward.mean() > 0.97
    assert mesh.area > 0.6 * 4 * np.pi * SPHERE_RADIUS**2


def check_textured_mesh(out: Path, name: str, slack: float) -> None:
    check_mesh(out, name, slack)
    assert (out / "mesh.obj").is_file() and (out / "material_0.png").is_file()


def check_cameras(out: Path) -> None:
    frames = json.loads((out / "transforms_train.json").read_text())
    c2w = np.array([frame["transform"] for frame in frames]) * [1, -1, -1, 1]
    np.testing.assert_allclose(c2w, make_sphere().c2w[:, :3], atol=1e-4)


def check_evaluation(out: Path) -> None:
    results = json.loads((out / "eval.json").read_text())["results"]
    assert results["normal_mae_deg"] < 2 and results["mask_iou"] > 0.97
    assert any((out / "pictures").iterdir())


def check_renders(out: Path) -> None:
    for output in ("rgb", "normals", "depth"):
        assert len(list((out / "renders" / "test" / output).iterdir())) == 7


SMALL = "--target-num-faces 1000 --num-pixels-per-side 128"
TOOLS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "ns-export pointcloud": ("--num-points 5000", check_cloud),
    # More points than pixels would be drawn several times, and the removal of outliers fails on those.
    "ns-export poisson": ("--num-points 20000", partial(check_mesh, name="poisson_mesh.ply", slack=0.02)),
    # Voxels of 1/64 in a world where the sphere's radius is about half.
    "ns-export tsdf": (f"--downscale-factor 1 {SMALL}", partial(check_textured_mesh, name="tsdf_mesh.ply", slack=0.06)),
    "ns-export cameras": ("", check_cameras),
    "ns-eval": ("--render-output-path OUT/pictures", check_evaluation),
    "ns-render dataset": ("--rendered-output-names rgb normals depth", check_renders),
}
"""Documented commands, options to add, and a check of the files that they leave in OUT."""
SECONDS_TO_END = 300
"""Time in which a documented command ends even on a busy machine; with nerfstudio's defaults, poisson does not."""


@pytest.mark.parametrize("name", TOOLS)
def test_command(name: str, run: Path, tmp_path: Path):
    extra, check = TOOLS[name]
    words = words_of(f"{documented_command(name)} {extra}", {"CONFIG": run, "OUT": tmp_path})
    ended = run_program(words, SECONDS_TO_END)
    assert ended.code == 0, ended.output[-4000:]
    check(tmp_path)


def test_viewer_shows_the_result_in_a_browser(run: Path, browser_page: Opened):  # noqa: F811
    for old in run.parent.glob("mesh-*.ply"):
        old.unlink()
    with served(words_of(documented_command("ns-viewer"), {"CONFIG": run})) as url:
        browser_page.visit(url)
        browser_page.page.get_by_text("A trained run").wait_for()
        # Before nerfstudio has set its page up, the page loads a logo from nerfstudio's site.
        browser_page.requests.clear()
        browser_page.errors.clear()
        browser_page.visit(url)
        browser_page.page.get_by_text("A trained run").wait_for()
        # The sphere in front of a uniform background.
        browser_page.canvas(until=lambda picture: lit(picture).sum() > 50_000)
        # Nothing trains at the same time: frames are large when the camera rests.
        browser_page.page.get_by_text("Resolution: 512").wait_for()
        # Nothing of a training that is not there.
        (checkpoint,) = (run.parent / "nerfstudio_models").glob("step-*.ckpt")
        browser_page.page.get_by_text(f"Step: {int(checkpoint.stem.removeprefix('step-'))}").wait_for()
        for absent in ("Pause Training", "Resume Training", "Crop center"):
            assert not browser_page.page.get_by_text(absent).count(), absent
        assert not browser_page.page.locator(".js-plotly-plot").count()
        browser_page.page.get_by_role("button", name="Export mesh now").click()
        browser_page.page.get_by_text("faces, in the data").wait_for()
        assert browser_page.errors == [] and browser_page.requests == []
    (mesh,) = run.parent.glob("mesh-*.ply")
    assert exported_mesh(mesh).is_watertight
