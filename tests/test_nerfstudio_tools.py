# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's own exporters, evaluation, renders and viewer on a trained run, without a GPU.

They run in this process, as their commands do after they have read their options; the viewer runs as a program.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from browser import Opened
from browser import live as browser_page  # noqa: F401
from conftest import SPHERE_CENTRE, SPHERE_RADIUS, make_sphere_arrays, write_scene
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.exporter import ExportCameraPoses, ExportPointCloud, ExportPoissonMesh, ExportTSDFMesh
from nerfstudio.scripts.render import DatasetRender
from serving import served
from training import make_config, set_up

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yml of a short run on the sphere."""
    folder = tmp_path_factory.mktemp("run")
    write_scene(folder / "sphere", **make_sphere_arrays())
    trainer = set_up(make_config("pmni-calibrated", folder / "sphere", folder, 200))
    trainer.train()
    return trainer.base_dir / "config.yml"


def radii(vertices: np.ndarray) -> np.ndarray:
    """Distances from the sphere's centre, in units of its radius: nerfstudio exports into the unit-sphere world."""
    return np.linalg.norm(vertices - SPHERE_CENTRE, axis=1) / SPHERE_RADIUS


def exported_mesh(path: Path) -> trimesh.Trimesh:
    mesh = trimesh.load_mesh(path)
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


def test_point_cloud(run: Path, tmp_path: Path):
    ExportPointCloud(load_config=run, output_dir=tmp_path, num_points=5000).main()
    cloud = trimesh.load(tmp_path / "point_cloud.ply")
    assert isinstance(cloud, trimesh.PointCloud) and len(cloud.vertices) >= 5000
    assert np.abs(radii(cloud.vertices) - 1).mean() < 0.01
    assert radii(cloud.vertices).max() < 1.1  # none of the background


@pytest.mark.parametrize(
    ("export", "name", "slack"),
    [
        (lambda **kw: ExportPoissonMesh(num_points=20_000, **kw), "poisson_mesh.ply", 0.02),
        # Voxels of 1/64 in a world where the sphere's radius is about half.
        (lambda **kw: ExportTSDFMesh(downscale_factor=1, **kw), "tsdf_mesh.ply", 0.06),
    ],
)
def test_meshes(export: Callable, name: str, slack: float, run: Path, tmp_path: Path):
    export(load_config=run, output_dir=tmp_path, target_num_faces=1000, num_pixels_per_side=128).main()
    mesh = exported_mesh(tmp_path / name)
    # All of it lies on the sphere, and its normals point outwards; what no camera sees may be open.
    assert np.abs(radii(mesh.vertices) - 1).mean() < slack / 2
    assert np.quantile(np.abs(radii(mesh.vertices) - 1), 0.99) < slack
    outward = ((mesh.triangles_center - SPHERE_CENTRE) * mesh.face_normals).sum(axis=1) > 0
    assert outward.mean() > 0.97
    assert mesh.area > 0.6 * 4 * np.pi * SPHERE_RADIUS**2
    assert (tmp_path / "mesh.obj").is_file() and (tmp_path / "material_0.png").is_file()


def test_cameras(run: Path, tmp_path: Path):
    ExportCameraPoses(load_config=run, output_dir=tmp_path).main()
    frames = json.loads((tmp_path / "transforms_train.json").read_text())
    c2w = np.array([frame["transform"] for frame in frames]) * [1, -1, -1, 1]
    np.testing.assert_allclose(c2w, make_sphere_arrays()["c2w"][:, :3], atol=1e-4)


def test_evaluation(run: Path, tmp_path: Path):
    ComputePSNR(load_config=run, output_path=tmp_path / "eval.json", render_output_path=tmp_path / "pictures").main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["normal_mae_deg"] < 2 and results["mask_iou"] > 0.97
    assert any((tmp_path / "pictures").iterdir())


def test_renders(run: Path, tmp_path: Path):
    DatasetRender(load_config=run, output_path=tmp_path, rendered_output_names=["rgb", "normals", "depth"]).main()
    for output in ("rgb", "normals", "depth"):
        assert len(list((tmp_path / "test" / output).iterdir())) == 7


def test_viewer_shows_the_result_in_a_browser(run: Path, browser_page: Opened):  # noqa: F811
    for old in run.parent.glob("mesh-*.ply"):
        old.unlink()
    with served([Path(sys.executable).parent / "ns-viewer", "--load-config", run]) as url:
        browser_page.visit(url)
        browser_page.page.get_by_text("A trained run").wait_for()
        # Who comes before nerfstudio has set its page up is sent to its site for a logo.
        browser_page.requests.clear()
        browser_page.errors.clear()
        browser_page.visit(url)
        browser_page.page.get_by_text("A trained run").wait_for()
        # The sphere, before a background of one colour.
        browser_page.canvas(until=lambda picture: int((picture.max(axis=2) > 90).sum()) > 50_000)
        browser_page.page.get_by_role("button", name="Export mesh now").click()
        browser_page.page.get_by_text("faces, in the data").wait_for()
        assert browser_page.errors == [] and browser_page.requests == []
    (mesh,) = run.parent.glob("mesh-*.ply")
    assert exported_mesh(mesh).is_watertight
