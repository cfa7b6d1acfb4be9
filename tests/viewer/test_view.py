# SPDX-License-Identifier: Apache-2.0
"""`pmni view`: vertex errors against known values, the page in a browser, and error messages."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
import viser
from helpers.browser import Opened, lit
from helpers.browser import live as browser_page  # noqa: F401
from helpers.scenes import SPHERE_CENTER, SPHERE_RADIUS, make_sphere
from helpers.serving import free_port
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.cli import main as pmni
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.displayed_result import DisplayedResult, read_displayed_result
from pmni_nerfstudio.export.cameras import write_result_cameras
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.viewer.home import home_from_cameras, oblique_direction
from pmni_nerfstudio.viewer.markdown import as_text
from pmni_nerfstudio.viewer.view import MAX_ERROR_DEG, RADIUS, ResultPage, colormapped


def true_sphere(world_from_unit: np.ndarray, growth: float = 0.0) -> trimesh.Trimesh:
    """The sphere of the test scene in the data's world, with its radius enlarged by `growth`."""
    scale = np.cbrt(np.linalg.det(world_from_unit[:3, :3]))
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=SPHERE_RADIUS * scale + growth)
    return mesh.apply_translation(world_from_unit[:3, :3] @ SPHERE_CENTER + world_from_unit[:3, 3])


def similarity() -> np.ndarray:
    """A similarity (4, 4) of scale 1.5."""
    moved = np.eye(4)
    moved[:3, :3] = 1.5 * Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix()
    moved[:3, 3] = [100.0, -50.0, 3.0]
    return moved


@pytest.fixture
def displayed(sphere_folder: Path) -> DisplayedResult:
    """A sphere 2 units too large with its true cameras; the ground truth is moved by a known similarity."""
    scene = read_scene(sphere_folder)
    assert scene.c2w is not None
    moved = similarity()
    return DisplayedResult(
        title="sphere",
        mesh=true_sphere(scene.world_from_unit, growth=2.0),
        scene=scene,
        cameras={"refined": transform_poses(scene.world_from_unit, scene.c2w)},
        truth=true_sphere(scene.world_from_unit).apply_transform(moved),
        truth_from_data=moved,
        units="mm",
    )


def test_distances_to_the_ground_truth_are_measured_after_alignment(displayed: DisplayedResult):
    np.testing.assert_allclose(displayed.truth_distances, 1.5 * 2.0, atol=0.1)  # tolerance: faceting of the spheres


KEEP_DISTANCES = """
import threading, trimesh
from pmni_nerfstudio.geometry.ray_casting import RayCaster
mesh = trimesh.creation.icosphere()
kept = RayCaster(mesh).distance(mesh.vertices)
threading.Thread(target=lambda kept: threading.Event().wait(), args=(kept,), daemon=True).start()
"""


def test_a_thread_that_keeps_distances_does_not_crash_at_exit():
    """A view of Open3D's memory held by a thread, as by the page's, would end Python with exit code 1."""
    subprocess.run([sys.executable, "-c", KEEP_DISTANCES], check=True)


def test_normal_errors_are_averaged_over_the_views(displayed: DisplayedResult):
    scene = displayed.scene
    assert scene is not None
    true = true_sphere(scene.world_from_unit)
    errors = DisplayedResult(title="", mesh=true, scene=scene, cameras=displayed.cameras).normal_errors_deg
    assert np.isfinite(errors).mean() > 0.5  # the ring of cameras doesn't see the poles
    # A pixel of 48x40 spans 5 deg where the sphere faces the camera, and 40 deg at the rim, which is excluded.
    assert np.nanmean(errors) < 0.5 and np.nanmax(errors) < 5.0
    rotation = Rotation.from_rotvec([0, 0, np.deg2rad(12.0)]).as_matrix()
    rotated = DisplayedResult(
        title="",
        mesh=true,
        cameras=displayed.cameras,
        scene=replace(scene, normals=(scene.normals.astype(float) @ rotation.T).astype(np.float16)),
    )
    # A rotation about the optical axis: 12 deg at the rim, none where the sphere faces the camera.
    assert 3.0 < np.nanmean(rotated.normal_errors_deg) < 12.5


def written_result(scene_folder: Path, folder: Path, mesh_name: str, moved: np.ndarray | None = None) -> Path:
    """Write a folder as `pmni export` and `pmni register` do: true sphere and cameras, moved by a similarity."""
    scene = read_scene(scene_folder)
    assert scene.c2w is not None
    folder.mkdir()
    moved = np.eye(4) if moved is None else moved
    true_sphere(scene.world_from_unit).apply_transform(moved).export(folder / mesh_name)
    world_from_unit = moved @ scene.world_from_unit
    c2w = transform_poses(world_from_unit, scene.c2w)
    write_result_cameras(folder, replace(scene, world_from_unit=world_from_unit), c2w)
    return folder


@pytest.fixture
def scene_with_truth(sphere_folder: Path) -> Path:
    """Folder of the sphere scene with its ground-truth mesh."""
    true_sphere(read_scene(sphere_folder).world_from_unit).export(sphere_folder / "mesh_Gt.ply")
    return sphere_folder


@pytest.mark.parametrize("mesh_name", ["mesh.ply", "mesh.glb", "surface.ply"])
def test_an_exported_folder_refers_to_its_scene_and_is_aligned(scene_with_truth: Path, tmp_path: Path, mesh_name: str):
    moved = np.linalg.inv(similarity())
    folder = written_result(scene_with_truth, tmp_path / "result", mesh_name, moved)
    found = read_displayed_result(folder)
    assert found.scene is not None and found.scene.root == scene_with_truth.resolve()
    assert list(found.cameras) == ["refined", "given"]
    np.testing.assert_allclose(found.truth_from_data @ moved, np.eye(4), atol=0.02)
    assert found.truth_distances.max() < 0.02 and np.nanmean(found.normal_errors_deg) < 0.5
    assert "Chamfer" in found.metrics[0] and "rotation" in found.metrics[1]
    unaligned = read_displayed_result(folder, align=False)
    np.testing.assert_allclose(unaligned.truth_from_data, np.eye(4), atol=1e-12)


def test_a_result_with_given_poses_is_not_aligned(scene_with_truth: Path, tmp_path: Path):
    folder = written_result(scene_with_truth, tmp_path / "result", "mesh.ply")
    true_sphere(read_scene(scene_with_truth).world_from_unit, growth=2.0).export(folder / "mesh.ply")
    found = read_displayed_result(folder)
    np.testing.assert_allclose(found.truth_distances, 2.0, atol=0.1)


def test_a_mesh_file_is_aligned_to_the_ground_truth_of_its_scene(scene_with_truth: Path, tmp_path: Path):
    slightly = np.eye(4)
    slightly[:3] = np.array([[1.05, 0, 0, 3.0], [0, 1.05, 0, -2.0], [0, 0, 1.05, 1.0]])
    mesh = written_result(scene_with_truth, tmp_path / "result", "mesh.ply", slightly) / "mesh.ply"
    poses = (tmp_path / "result" / "poses.npy").rename(tmp_path / "elsewhere.npy")
    (tmp_path / "result" / "cameras_refined.npz").unlink()
    alone = read_displayed_result(mesh, data=scene_with_truth)
    assert list(alone.cameras) == ["given"] and alone.truth_distances.max() < 0.05
    with_poses = read_displayed_result(mesh, data=scene_with_truth, poses=poses)
    assert list(with_poses.cameras) == ["refined", "given"] and with_poses.truth_distances.max() < 0.05


def test_a_missing_scene_is_tolerated(scene_with_truth: Path, tmp_path: Path):
    folder = written_result(scene_with_truth, tmp_path / "result", "mesh.ply")
    scene_with_truth.rename(tmp_path / "elsewhere")
    found = read_displayed_result(folder)
    assert found.scene is None and found.cameras == {} and found.truth is None
    assert read_displayed_result(folder, data=tmp_path / "elsewhere").truth is not None


def test_stored_metrics_are_reused_unless_other_poses_are_given(scene_with_truth: Path, tmp_path: Path):
    given = written_result(scene_with_truth, tmp_path / "given", "mesh.ply", np.linalg.inv(similarity()))
    measured = tmp_path / "measured"
    words = ["--mesh", given / "mesh.ply", "--poses", given / "poses.npy", "--data", scene_with_truth]
    pmni(["eval", *map(str, words), "--output-dir", str(measured)])
    kept = read_displayed_result(measured)
    record = json.loads((measured / "metrics.json").read_text())
    np.testing.assert_array_equal(kept.truth_from_data, np.array(record["similarity"]))
    assert kept.units == "mm" and len(kept.metrics) == 3 and kept.truth_distances.max() < 0.02
    # Other poses lead to another alignment.
    shifted = np.load(given / "poses.npy")
    shifted[:, :3, :3] = Rotation.from_rotvec([0, 0, 0.3]).as_matrix() @ shifted[:, :3, :3]
    np.save(tmp_path / "poses.npy", shifted)
    again = read_displayed_result(measured, poses=tmp_path / "poses.npy")
    np.testing.assert_array_equal(again.cameras["refined"], shifted)
    assert np.abs(again.truth_from_data - kept.truth_from_data).max() > 0.1


def test_values_are_mapped_to_colors():
    colors = colormapped(np.array([0.0, MAX_ERROR_DEG, np.nan]), MAX_ERROR_DEG).astype(int)
    assert colors[0, 2] > colors[0, 1]  # viridis runs from dark blue to yellow
    assert colors[1, 0] > 200 and colors[1, 1] > 200 and colors[1, 2] < 100
    assert len(set(colors[2])) == 1


def test_markdown_characters_are_escaped():
    assert as_text("a_b*c [d](e) <f> {g}") == r"a\_b\*c \[d\]\(e\) \<f\> \{g\}"
    assert as_text("view 7, 0.5 mm") == "view 7, 0.5 mm"


def test_the_initial_view_is_from_the_side():
    for up in np.concatenate([np.eye(3), -np.eye(3)]):
        direction = oblique_direction(up)
        assert 0.2 < direction @ up / np.linalg.norm(direction) < 0.5
    c2w = make_sphere().c2w
    up, direction = home_from_cameras(c2w)
    np.testing.assert_allclose(up, -c2w[:, :3, 1].mean(axis=0) / np.linalg.norm(c2w[:, :3, 1].mean(axis=0)))
    level = c2w[0, :3, 3] - (c2w[0, :3, 3] @ up) * up
    assert direction @ level / np.linalg.norm(direction) / np.linalg.norm(level) > 0.97


def test_the_page_in_a_browser(displayed: DisplayedResult, browser_page: Opened):  # noqa: F811
    port = free_port()
    server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
    page = ResultPage(server, displayed)
    browser_page.visit(f"http://127.0.0.1:{port}")
    # The page's initial view, unlike viser's own, shows the whole object: background on all sides.
    plain = browser_page.canvas(until=lambda picture: 20_000 < lit(picture).sum() < 0.4 * picture[..., 0].size)
    for choice in page.choices[1:]:
        page.surface.value = choice
        page.draw()
        browser_page.canvas(until=lambda picture: np.abs(picture.astype(int) - plain).mean() > 1.0)
    browser_page.page.get_by_text("not seen well").wait_for()
    page.show_view(next(iter(server.get_clients().values())), 2)
    browser_page.page.get_by_text("input, mesh").wait_for()
    assert browser_page.errors == [] and browser_page.requests == []
    server.stop()


def test_a_mesh_without_cameras_in_a_browser(browser_page: Opened):  # noqa: F811
    port = free_port()
    server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
    page = ResultPage(server, DisplayedResult(title="box", mesh=trimesh.creation.box(extents=(1, 1, 8))))
    browser_page.visit(f"http://127.0.0.1:{port}")

    def extents(picture: np.ndarray) -> list[float]:
        """Height and width of the bright region, as fractions of the page."""
        seen = [np.flatnonzero(lit(picture).sum(axis=1 - axis) > 20) for axis in range(2)]
        return [float(np.ptp(lines)) / picture.shape[axis] if len(lines) else 0.0 for axis, lines in enumerate(seen)]

    def is_upright(picture: np.ndarray) -> bool:
        down, across = extents(picture)
        return 0.3 < down < 0.95 and 0.02 < across < 0.25

    def is_short(picture: np.ndarray) -> bool:
        down, across = extents(picture)
        return 0.02 < down < 0.3 and 0.02 < across < 0.3

    # The whole box is visible and upright; with x up, it is seen from one end.
    browser_page.canvas(until=is_upright)
    page.up.value = "+x"
    page.home.look(*page.up_and_direction())
    browser_page.canvas(until=is_short)
    client = next(iter(server.get_clients().values()))
    assert np.linalg.norm(client.camera.position) > 2 * RADIUS
    assert browser_page.errors == [] and browser_page.requests == []
    server.stop()


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"frames": []}', *(json.dumps({"frames": [{"mask_path": p}]}) for p in (3, "\0", "x" * 5000))],
)
def test_an_invalid_transforms_json_is_reported(content: str, tmp_path: Path):
    trimesh.creation.box().export(tmp_path / "mesh.ply")
    (tmp_path / "transforms.json").write_text(content)
    with pytest.raises(PmniError, match=r"transforms\.json: can't be read"):
        read_displayed_result(tmp_path)


def test_errors_are_reported_in_one_line(tmp_path: Path, sphere_folder: Path, capsys: pytest.CaptureFixture[str]):
    mesh, poses, empty, broken = (tmp_path / name for name in ("mesh.ply", "poses.npy", "empty", "metrics"))
    trimesh.creation.box().export(mesh)
    np.save(poses, make_sphere().c2w[:3])
    empty.mkdir()
    broken.mkdir()
    (broken / "metrics.json").write_text(json.dumps({}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        wrong = {
            "no such mesh": [tmp_path / "none.ply"],
            "contains no mesh": [empty],
            "lacks": [broken],
            "holds 3 poses": [mesh, "--data", sphere_folder, "--poses", poses],
            "scene of these poses is unknown": [mesh, "--poses", poses],
            "can't listen on": [mesh, "--port", port],
        }
        for message, words in wrong.items():
            with pytest.raises(SystemExit) as stop:
                pmni(["view", *map(str, words)])
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert stop.value.code == 1 and message in line, line
