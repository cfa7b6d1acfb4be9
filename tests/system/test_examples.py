# SPDX-License-Identifier: Apache-2.0
"""Output of the scripts in examples/ for a small run, compared with the ground truth of its scene."""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open3d as o3d
import pytest
import torch
import trimesh
import tyro
from helpers.programs import run
from helpers.trained_run import TrainedRun
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from PIL import Image
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation
from torch.utils.tensorboard import SummaryWriter

from pmni_nerfstudio.data.images import read_mask
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.world_sdf import WorldSdf
from pmni_nerfstudio.fields.sdf_field import PmniField, PmniFieldConfig
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.synth.render import render
from pmni_nerfstudio.synth.shapes import SHAPES

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPE = TrainedRun.shape


def run_example(name: str, *words: str | Path) -> None:
    """Run a script as its command line would, in this process."""
    tyro.cli(runpy.run_path(str(EXAMPLES / name))["main"], args=[str(word) for word in words])


@dataclass
class Trained:
    """A scene with ground truth, a run of it, and the result of `pmni eval`."""

    scene: Scene
    config: Path
    result: Path

    @property
    def scale(self) -> float:
        """Radius of the unit sphere in the data's units."""
        return float(self.scene.world_from_unit[0, 0])

    def unit(self, points: np.ndarray) -> np.ndarray:
        """Points of the data's world in the unit-sphere world, in which the shape is defined."""
        return (points - self.scene.world_from_unit[:3, 3]) / self.scale

    def true_distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distances to the true surface's mesh, in the data's world and units."""
        mesh = o3d.t.io.read_triangle_mesh(str(self.scene.mesh_file))
        rays = o3d.t.geometry.RaycastingScene()
        rays.add_triangles(mesh)
        return rays.compute_signed_distance(o3d.core.Tensor(points.astype(np.float32))).numpy()


@pytest.fixture(scope="module")
def trained(trained_run: TrainedRun) -> Trained:
    return Trained(read_scene(trained_run.scene), trained_run.config, trained_run.result)


def load_mesh(path: Path) -> trimesh.Trimesh:
    mesh = trimesh.load(path, force="mesh", process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


def angle_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def test_picture_shows_the_result(trained: Trained, tmp_path: Path):
    run_example("01_picture.py", trained.scene.root, trained.result, tmp_path / "picture.png", "--views", "2")
    picture = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    assert picture.shape[1] > picture.shape[0] > 300
    assert (picture.min(axis=2) < 200).mean() > 0.1  # not a blank page


def test_novel_views_are_those_of_the_true_shape(trained: Trained, tmp_path: Path):
    run_example("02_render_novel_views.py", trained.config, tmp_path, "--views", "5", "--scale", "2")
    poses, K = np.load(tmp_path / "poses.npy"), np.load(tmp_path / "intrinsics.npy")
    assert poses.shape == (5, 4, 4)
    unit = poses.copy()
    unit[:, :3, 3] = trained.unit(poses[:, :3, 3])
    # A turntable: the first view is the first camera, and the others have its distance and height.
    assert trained.scene.c2w is not None
    assert np.allclose(unit[0], trained.scene.c2w[0], atol=1e-6)
    assert np.allclose(np.linalg.norm(unit[:, :3, 3], axis=1), 15, atol=1e-5)
    assert np.allclose(unit[:, 2, 3], unit[0, 2, 3], atol=1e-5)
    step = np.linalg.norm(np.roll(unit[:, :3, 3], 1, axis=0) - unit[:, :3, 3], axis=1)
    assert np.allclose(step, step[0]) and step[0] > 10
    masks, normals, depth = render(SHAPES[SHAPE], K, unit, 96, 80)
    for i in range(5):
        shown = np.asarray(Image.open(tmp_path / "normals" / f"{i:03d}.png")).astype(float)
        seen = (shown < 255).any(axis=2)
        assert (seen & masks[i]).sum() / (seen | masks[i]).sum() > 0.95
        both = seen & masks[i]
        error = angle_deg((shown[both] / 127.5 - 1) * [1, -1, -1], normals[i][both])
        assert np.median(error) < 4
        # The nearer the brighter.
        bright = np.asarray(Image.open(tmp_path / "depth" / f"{i:03d}.png")).astype(float)
        assert ((bright > 0) == seen).all()
        assert np.corrcoef(bright[both], -depth[i][both])[0, 1] > 0.98
        # Headlight shading: surfaces that face the camera are brightest.
        rgb = np.asarray(Image.open(tmp_path / "rgb" / f"{i:03d}.png")).astype(float)
        assert rgb.shape == (80, 96, 3)
        assert np.corrcoef(rgb[both][:, 0], -normals[i][both][:, 2])[0, 1] > 0.9
    with Image.open(tmp_path / "turntable.gif") as animation:
        assert (animation.n_frames, animation.size) == (5, (3 * 96, 80))  # pyright: ignore[reportAttributeAccessIssue]


def test_samples_are_even_and_have_the_surface_normals(trained: Trained, tmp_path: Path):
    run_example("03_sample_surface.py", trained.config, tmp_path / "points.ply", "--count", "20000")
    cloud = o3d.io.read_point_cloud(str(tmp_path / "points.ply"))
    points, normals, colours = (np.asarray(a) for a in (cloud.points, cloud.normals, cloud.colors))
    assert points.shape == (20000, 3)
    # On the run's own surface, up to the flatness of the mesh's triangles, which are 1.7 units long ...
    apart = RayCaster(load_mesh(trained.result / "mesh.ply")).distance(points)
    assert apart.mean() < 0.04 and np.quantile(apart, 0.99) < 0.2
    # ... and near the true one.
    assert np.abs(trained.true_distance(points)).mean() < 0.01 * trained.scale
    assert np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    _, gradient = SHAPES[SHAPE].gradient(torch.from_numpy(trained.unit(points)))
    assert np.median(angle_deg(normals, gradient.numpy())) < 5
    assert np.abs(colours - (normals + 1) / 2).max() < 0.01
    mesh = load_mesh(trained.result / "mesh.ply")
    # Even: each octant has a share of the points in proportion to its area.
    middle = mesh.triangles_center - trained.scene.world_from_unit[:3, 3]
    octant = (middle > 0) @ [4, 2, 1]
    area = np.bincount(octant, mesh.area_faces, 8) / mesh.area
    share = np.bincount((points - trained.scene.world_from_unit[:3, 3] > 0) @ [4, 2, 1], minlength=8) / len(points)
    assert np.abs(share - area).max() < 0.01


def test_queried_distances_have_the_true_sign_scale_and_gradient(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
):
    rng = np.random.default_rng(0)
    mesh = load_mesh(Path(str(trained.scene.mesh_file)))
    face = rng.integers(len(mesh.faces), size=2000)
    on = mesh.triangles_center[face]
    offset = rng.uniform(-3, 3, len(on))  # units, of 55 a radius
    near = on + offset[:, None] * mesh.face_normals[face]
    wide = trained.scene.world_from_unit[:3, 3] + trained.scale * rng.uniform(-1, 1, (2000, 3))
    last = np.array([[1e3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    step = 0.05
    ahead = near + step * mesh.face_normals[face]
    np.save(tmp_path / "points.npy", np.concatenate([near, ahead, wide, last]))
    run_example("04_query_sdf.py", trained.config, tmp_path / "points.npy", tmp_path / "out.npy")
    at_near, at_ahead, at_wide, at_last = np.split(np.load(tmp_path / "out.npy"), [2000, 4000, 6000])
    # Near the surface the value is the distance in the data's units.
    assert np.median(np.abs(at_near[:, 0] - trained.true_distance(near))) < 0.2
    assert np.polyfit(trained.true_distance(near), at_near[:, 0], 1)[0] == pytest.approx(1, abs=0.05)
    # The gradient is the change of the distance, in the data's axes.
    change = (at_ahead[:, 0] - at_near[:, 0]) / step
    along = ((at_near[:, 1:] + at_ahead[:, 1:]) / 2 * mesh.face_normals[face]).sum(axis=1)
    assert np.median(np.abs(change - along)) < 0.01
    assert np.median(np.linalg.norm(at_near[:, 1:], axis=1)) == pytest.approx(1, abs=0.05)
    # Far from the surface the sign is right.
    true = trained.true_distance(wide)
    clear = np.abs(true) > 3
    assert (true[clear] < 0).sum() > 100
    assert ((at_wide[clear, 0] < 0) == (true[clear] < 0)).all()
    assert np.isnan(at_last[0]).all()
    printed = capsys.readouterr().out
    assert "radius 55 (the data's units)" in printed
    origin = float(printed.split("at the data's origin: ")[1].split(",")[0])
    assert origin == pytest.approx(at_last[1, 0], rel=1e-3) and origin < -3  # well inside


def test_signed_distance_in_a_world_that_is_turned_shifted_and_scaled():
    """A ball of half the unit sphere's radius has a closed-form distance and gradient."""
    world_from_unit, rng = np.eye(4), np.random.default_rng(0)
    world_from_unit[:3, :3] = 40 * Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    world_from_unit[:3, 3] = 3, -70, 11
    sdf = WorldSdf(PmniField(PmniFieldConfig(encoding="grid", grid_vertices=(65,))), world_from_unit)
    assert sdf.radius == pytest.approx(40) and sdf.center.tolist() == [3, -70, 11]
    arm = rng.normal(size=(1000, 3))
    arm *= rng.uniform(10, 39, 1000)[:, None] / np.linalg.norm(arm, axis=1, keepdims=True)
    values, gradients = sdf(sdf.center + arm)
    distance = np.linalg.norm(arm, axis=1)
    assert np.abs(values - (distance - 20)).max() < 0.05
    assert np.abs(gradients - arm / distance[:, None]).max() < 0.15
    assert np.isnan(sdf(sdf.center + 80 * np.eye(3))[0]).all()


def test_colmap_model_projects_as_our_cameras_do(trained: Trained, tmp_path: Path):
    run_example("06_poses_to_colmap.py", trained.scene.root, trained.result, tmp_path, "--points", "500")
    folder = tmp_path / "sparse" / "0"
    cameras = colmap.read_cameras_text(folder / "cameras.txt")
    images = colmap.read_images_text(folder / "images.txt")
    cloud = np.array([point.xyz for point in colmap.read_points3D_text(folder / "points3D.txt").values()])
    assert len(cameras) == 1 and len(images) == trained.scene.num_views and cloud.shape == (500, 3)
    assert np.abs(trained.true_distance(cloud)).mean() < 0.01 * trained.scale
    assert trained.scene.c2w is not None
    for i, image in enumerate(images.values()):
        camera = cameras[image.camera_id]
        assert (camera.model, camera.width, camera.height) == ("PINHOLE", 48, 40)
        assert (trained.scene.root / image.name).resolve() == trained.scene.normal_files[i].resolve()
        # The run keeps the given poses, which project from the unit-sphere world.
        local = np.linalg.inv(trained.scene.c2w[i]) @ np.column_stack([trained.unit(cloud), np.ones(500)]).T
        ours = trained.scene.K[i] @ local[:3]
        theirs = colmap.qvec2rotmat(image.qvec) @ cloud.T + image.tvec[:, None]
        fx, fy, cx, cy = camera.params
        theirs = np.stack([fx * theirs[0] / theirs[2] + cx, fy * theirs[1] / theirs[2] + cy])
        assert np.abs(theirs - (ours[:2] / ours[2] + 0.5)).max() < 1e-3
        # The points project onto the mask to within a pixel: in COLMAP, pixel c covers [c, c + 1].
        mask = binary_dilation(read_mask(trained.scene.mask_files[i]))
        column, row = np.floor(theirs).astype(int)
        assert mask[row, column].mean() > 0.99
    # transforms.json has the same poses in OpenGL axes, and paths relative to itself.
    frames = json.loads((tmp_path / "transforms.json").read_text())["frames"]
    assert len(frames) == len(images)
    for frame, image in zip(frames, images.values()):
        w2c = np.column_stack([colmap.qvec2rotmat(image.qvec), image.tvec])
        assert np.allclose(w2c @ frame["transform_matrix"], np.diag([1, -1, -1, 1])[:3], atol=1e-6)
        assert (tmp_path / frame["file_path"]).is_file() and (tmp_path / frame["mask_path"]).is_file()


def test_curves_show_the_logged_values(trained: Trained, tmp_path: Path):
    script = runpy.run_path(str(EXAMPLES / "07_plot_training.py"))
    steps = np.arange(0, 500, 10)
    logged: dict[str, Any] = {
        "Train Loss": 3 * np.exp(-steps / 100) + 0.01,
        "Train Loss Dict/normal_loss": 2 * np.exp(-steps / 90),
        "Train Loss Dict/mask_loss": np.exp(-steps / 50),
        "Train Metrics Dict/inv_s": 20.0 + steps,
        "learning_rate/sdf": 1e-3 * np.cos(steps / 400),
        "Train Rays / Sec": 1e5 + steps,
    }
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for tag, values in logged.items():
            for step, value in zip(steps, values):
                writer.add_scalar(tag, value, step)
    run_example("07_plot_training.py", tmp_path / "run", tmp_path / "picture.png")
    assert (np.asarray(Image.open(tmp_path / "picture.png").convert("L")) < 128).mean() > 0.005
    axes = script["draw"](script["read_curves"](tmp_path / "run")).axes
    assert [axis.get_yscale() for axis in axes] == ["log", "linear", "linear"]
    drawn = [{line.get_label(): line.get_xydata() for line in axis.lines} for axis in axes]
    assert [set(lines) for lines in drawn] == [{"total", "normal", "mask"}, {"inv_s"}, {"sdf"}]
    for lines, label, tag in (
        (drawn[0], "total", "Train Loss"),
        (drawn[0], "normal", "Train Loss Dict/normal_loss"),
        (drawn[1], "inv_s", "Train Metrics Dict/inv_s"),
        (drawn[2], "sdf", "learning_rate/sdf"),
    ):
        assert np.allclose(lines[label], np.column_stack([steps, logged[tag]]), rtol=1e-5)
    # The values that a run of ours logs are found.
    real = script["draw"](script["read_curves"](trained.config.parent)).axes
    assert {line.get_label() for line in real[0].lines} >= {"total", "normal", "mask", "eikonal"}
    with pytest.raises(PmniError, match="has no TensorBoard events"):
        script["main"](tmp_path, tmp_path / "none.png")


def test_a_mistake_ends_a_script_with_a_one_line_error(trained: Trained, tmp_path: Path):
    ended = run(["python", EXAMPLES / "06_poses_to_colmap.py", trained.scene.root, tmp_path, tmp_path / "out"])
    assert ended.code == 1
    errors = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(errors) == 1 and errors[0].startswith("error: ") and "poses.npy: no such file" in errors[0], ended.output
