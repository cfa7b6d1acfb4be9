# SPDX-License-Identifier: Apache-2.0
"""`pmni view`: the colours against known errors, the page in a real browser, and what can be wrong."""

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
from conftest import SPHERE_CENTRE, SPHERE_RADIUS, make_sphere_arrays
from helpers.browser import Opened, lit
from helpers.browser import live as browser_page  # noqa: F401
from helpers.serving import free_port
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.cli import main as pmni
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.cameras import write_refined_cameras
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.viewer.home import home_of_cameras, oblique
from pmni_nerfstudio.viewer.markdown import as_text
from pmni_nerfstudio.viewer.reading import read_subject
from pmni_nerfstudio.viewer.subject import Subject
from pmni_nerfstudio.viewer.view import MOST_ERROR_DEG, RADIUS, ResultPage, scale_colours, srgb_to_linear


def true_sphere(world_from_unit: np.ndarray, growth: float = 0.0) -> trimesh.Trimesh:
    """The tests' sphere in the data's world, grown by so many of its units."""
    scale = np.cbrt(np.linalg.det(world_from_unit[:3, :3]))
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=SPHERE_RADIUS * scale + growth)
    return mesh.apply_translation(world_from_unit[:3, :3] @ SPHERE_CENTRE + world_from_unit[:3, 3])


def similarity() -> np.ndarray:
    """Any one, (4, 4), of scale 1.5."""
    moved = np.eye(4)
    moved[:3, :3] = 1.5 * Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix()
    moved[:3, 3] = [100.0, -50.0, 3.0]
    return moved


@pytest.fixture
def subject(sphere_folder: Path) -> Subject:
    """The sphere with its true cameras, 2 units too large, beside the truth turned and moved by a known similarity."""
    scene = read_scene(sphere_folder)
    assert scene.c2w is not None
    moved = similarity()
    return Subject(
        title="sphere",
        mesh=true_sphere(scene.world_from_unit, growth=2.0),
        scene=scene,
        cameras={"refined": transform_poses(scene.world_from_unit, scene.c2w)},
        truth=true_sphere(scene.world_from_unit).apply_transform(moved),
        truth_from_data=moved,
        units="mm",
    )


def test_distances_are_those_to_the_truth_once_aligned(subject: Subject):
    np.testing.assert_allclose(subject.truth_distances, 1.5 * 2.0, atol=0.1)  # facets are as far off


HOLDS_DISTANCES = """
import threading, trimesh
from pmni_nerfstudio.geometry.ray_casting import RayCaster
mesh = trimesh.creation.icosphere()
held = RayCaster(mesh).distance(mesh.vertices)
threading.Thread(target=lambda held: threading.Event().wait(), args=(held,), daemon=True).start()
"""


def test_a_program_that_holds_distances_ends_well():
    """As a page's threads hold them. Memory of Open3D's own in hand then has it end Python with exit code 1."""
    subprocess.run([sys.executable, "-c", HOLDS_DISTANCES], check=True)


def test_errors_of_normals_are_those_of_the_views(subject: Subject):
    assert subject.scene is not None
    true = true_sphere(subject.scene.world_from_unit)
    errors = Subject(title="", mesh=true, scene=subject.scene, cameras=subject.cameras).normal_errors_deg
    assert np.isfinite(errors).mean() > 0.5  # the ring of cameras sees no poles
    # A pixel of 48x40 is 5 deg where the sphere faces the camera, and 40 at the rim, which counts for nothing.
    assert np.nanmean(errors) < 0.5 and np.nanmax(errors) < 5.0
    turn = Rotation.from_rotvec([0, 0, np.deg2rad(12.0)]).as_matrix()
    turned = Subject(
        title="",
        mesh=true,
        cameras=subject.cameras,
        scene=replace(subject.scene, normals=(subject.scene.normals.astype(float) @ turn.T).astype(np.float16)),
    )
    # About the optical axis: by 12 deg at the rim, by none where the sphere faces the camera.
    assert 3.0 < np.nanmean(turned.normal_errors_deg) < 12.5


def written_result(scene_folder: Path, folder: Path, mesh_name: str, moved: np.ndarray | None = None) -> Path:
    """A folder as `pmni export` and `pmni register` write it: the true sphere and cameras, moved by a similarity."""
    scene = read_scene(scene_folder)
    assert scene.c2w is not None
    folder.mkdir()
    moved = np.eye(4) if moved is None else moved
    true_sphere(scene.world_from_unit).apply_transform(moved).export(folder / mesh_name)
    world_from_unit = moved @ scene.world_from_unit
    write_refined_cameras(folder, replace(scene, world_from_unit=world_from_unit), scene.c2w)
    return folder


@pytest.fixture
def scene_with_truth(sphere_folder: Path) -> Path:
    """The sphere's folder, with its true mesh in it."""
    true_sphere(read_scene(sphere_folder).world_from_unit).export(sphere_folder / "mesh_Gt.ply")
    return sphere_folder


@pytest.mark.parametrize("mesh_name", ["mesh.ply", "mesh.glb", "surface.ply"])
def test_a_written_folder_knows_its_scene_and_is_laid_onto_the_truth(
    scene_with_truth: Path, tmp_path: Path, mesh_name: str
):
    moved = np.linalg.inv(similarity())
    folder = written_result(scene_with_truth, tmp_path / "result", mesh_name, moved)
    found = read_subject(folder)
    assert found.scene is not None and found.scene.root == scene_with_truth.resolve()
    assert list(found.cameras) == ["refined", "given"]
    np.testing.assert_allclose(found.truth_from_data @ moved, np.eye(4), atol=0.02)
    assert found.truth_distances.max() < 0.02 and np.nanmean(found.normal_errors_deg) < 0.5
    assert "Chamfer" in found.figures[0] and "rotation" in found.figures[1]
    unaligned = read_subject(folder, align=False)
    np.testing.assert_allclose(unaligned.truth_from_data, np.eye(4), atol=1e-12)


def test_an_error_of_given_cameras_is_not_aligned_away(scene_with_truth: Path, tmp_path: Path):
    folder = written_result(scene_with_truth, tmp_path / "result", "mesh.ply")
    true_sphere(read_scene(scene_with_truth).world_from_unit, growth=2.0).export(folder / "mesh.ply")
    found = read_subject(folder)
    np.testing.assert_allclose(found.truth_distances, 2.0, atol=0.1)


def test_a_mesh_alone_is_laid_onto_the_truth_of_its_scene(scene_with_truth: Path, tmp_path: Path):
    slightly = np.eye(4)
    slightly[:3] = np.array([[1.05, 0, 0, 3.0], [0, 1.05, 0, -2.0], [0, 0, 1.05, 1.0]])
    mesh = written_result(scene_with_truth, tmp_path / "result", "mesh.ply", slightly) / "mesh.ply"
    poses = (tmp_path / "result" / "poses.npy").rename(tmp_path / "elsewhere.npy")
    (tmp_path / "result" / "cameras_refined.npz").unlink()
    alone = read_subject(mesh, data=scene_with_truth)
    assert list(alone.cameras) == ["given"] and alone.truth_distances.max() < 0.05
    with_poses = read_subject(mesh, data=scene_with_truth, poses=poses)
    assert list(with_poses.cameras) == ["refined", "given"] and with_poses.truth_distances.max() < 0.05


def test_a_scene_that_has_gone_is_done_without(scene_with_truth: Path, tmp_path: Path):
    folder = written_result(scene_with_truth, tmp_path / "result", "mesh.ply")
    scene_with_truth.rename(tmp_path / "elsewhere")
    found = read_subject(folder)
    assert found.scene is None and found.cameras == {} and found.truth is None
    assert read_subject(folder, data=tmp_path / "elsewhere").truth is not None


def test_a_measured_folder_keeps_its_figures_until_it_is_measured_anew(scene_with_truth: Path, tmp_path: Path):
    given = written_result(scene_with_truth, tmp_path / "given", "mesh.ply", np.linalg.inv(similarity()))
    measured = tmp_path / "measured"
    words = ["--mesh", given / "mesh.ply", "--poses", given / "poses.npy", "--data", scene_with_truth]
    pmni(["eval", *map(str, words), "--output-dir", str(measured)])
    kept = read_subject(measured)
    record = json.loads((measured / "metrics.json").read_text())
    np.testing.assert_array_equal(kept.truth_from_data, np.array(record["similarity"]))
    assert kept.units == "mm" and len(kept.figures) == 3 and kept.truth_distances.max() < 0.02
    # Of other cameras, another similarity.
    shifted = np.load(given / "poses.npy")
    shifted[:, :3, :3] = Rotation.from_rotvec([0, 0, 0.3]).as_matrix() @ shifted[:, :3, :3]
    np.save(tmp_path / "poses.npy", shifted)
    anew = read_subject(measured, poses=tmp_path / "poses.npy")
    np.testing.assert_array_equal(anew.cameras["refined"], shifted)
    assert np.abs(anew.truth_from_data - kept.truth_from_data).max() > 0.1


def test_colours_of_values():
    colours = scale_colours(np.array([0.0, MOST_ERROR_DEG, np.nan]), MOST_ERROR_DEG).astype(int)
    assert colours[0, 2] > colours[0, 1]  # viridis begins dark blue and ends yellow
    assert colours[1, 0] > 200 and colours[1, 1] > 200 and colours[1, 2] < 100
    assert len(set(colours[2])) == 1


def test_colours_of_a_screen_as_light():
    np.testing.assert_allclose(
        srgb_to_linear(np.array([0.0, 0.04, 0.5, 1.0])), [0, 0.04 / 12.92, 0.21404, 1], atol=1e-5
    )


def test_names_are_shown_as_they_stand():
    assert as_text("a_b*c [d](e) <f> {g}") == r"a\_b\*c \[d\]\(e\) \<f\> \{g\}"
    assert as_text("view 7, 0.5 mm") == "view 7, 0.5 mm"


def test_a_page_looks_from_the_side():
    for up in np.concatenate([np.eye(3), -np.eye(3)]):
        direction = oblique(up)
        assert 0.2 < direction @ up / np.linalg.norm(direction) < 0.5
    c2w = make_sphere_arrays()["c2w"]
    up, direction = home_of_cameras(c2w)
    np.testing.assert_allclose(up, -c2w[:, :3, 1].mean(axis=0) / np.linalg.norm(c2w[:, :3, 1].mean(axis=0)))
    level = c2w[0, :3, 3] - (c2w[0, :3, 3] @ up) * up
    assert direction @ level / np.linalg.norm(direction) / np.linalg.norm(level) > 0.97


def test_the_page_in_a_browser(subject: Subject, browser_page: Opened):  # noqa: F811
    port = free_port()
    server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
    page = ResultPage(server, subject)
    browser_page.visit(f"http://127.0.0.1:{port}")
    # From where a page first looks, and not from where viser's own looks: background all round.
    plain = browser_page.canvas(until=lambda picture: 20_000 < lit(picture).sum() < 0.4 * picture[..., 0].size)
    for chosen in page.choices[1:]:
        page.colours.value = chosen
        page.draw()
        browser_page.canvas(until=lambda picture: np.abs(picture.astype(int) - plain).mean() > 1.0)
    browser_page.page.get_by_text("not seen well").wait_for()
    page._clicked(next(iter(server.get_clients().values())), 2)
    browser_page.page.get_by_text("input, mesh").wait_for()
    assert browser_page.errors == [] and browser_page.requests == []
    server.stop()


def test_a_mesh_alone_in_a_browser(browser_page: Opened):  # noqa: F811
    port = free_port()
    server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
    page = ResultPage(server, Subject(title="box", mesh=trimesh.creation.box(extents=(1, 1, 8))))
    browser_page.visit(f"http://127.0.0.1:{port}")

    def extents(picture: np.ndarray) -> list[float]:
        """Of the bright pixels, down and across, in parts of the page."""
        seen = [np.flatnonzero(lit(picture).sum(axis=1 - axis) > 20) for axis in range(2)]
        return [float(np.ptp(lines)) / picture.shape[axis] if len(lines) else 0.0 for axis, lines in enumerate(seen)]

    def stands(picture: np.ndarray) -> bool:
        down, across = extents(picture)
        return 0.3 < down < 0.95 and 0.02 < across < 0.25

    def is_short(picture: np.ndarray) -> bool:
        down, across = extents(picture)
        return 0.02 < down < 0.3 and 0.02 < across < 0.3

    # From outside, the whole of it, upright; once x is up, from an end.
    browser_page.canvas(until=stands)
    page.up.value = "+x"
    page._home.look(*page._sides())
    browser_page.canvas(until=is_short)
    client = next(iter(server.get_clients().values()))
    assert np.linalg.norm(client.camera.position) > 2 * RADIUS
    assert browser_page.errors == [] and browser_page.requests == []
    server.stop()


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"frames": []}', *(json.dumps({"frames": [{"mask_path": p}]}) for p in (3, "\0", "x" * 5000))],
)
def test_cameras_that_name_no_scene(content: str, tmp_path: Path):
    trimesh.creation.box().export(tmp_path / "mesh.ply")
    (tmp_path / "transforms.json").write_text(content)
    with pytest.raises(PmniError, match=r"transforms\.json: can't be read"):
        read_subject(tmp_path)


def test_what_is_wrong_is_one_line(tmp_path: Path, sphere_folder: Path, capsys: pytest.CaptureFixture[str]):
    mesh, poses, empty, broken = (tmp_path / name for name in ("mesh.ply", "poses.npy", "empty", "metrics"))
    trimesh.creation.box().export(mesh)
    np.save(poses, make_sphere_arrays()["c2w"][:3])
    empty.mkdir()
    broken.mkdir()
    (broken / "metrics.json").write_text(json.dumps({}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        wrong = {
            "no such mesh": [tmp_path / "none.ply"],
            "holds no mesh": [empty],
            "lacks": [broken],
            "holds 3 poses": [mesh, "--data", sphere_folder, "--poses", poses],
            "of which views": [mesh, "--poses", poses],
            "can't be listened on": [mesh, "--port", port],
        }
        for said, words in wrong.items():
            with pytest.raises(SystemExit) as stop:
                pmni(["view", *map(str, words)])
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert stop.value.code == 1 and said in line, line
