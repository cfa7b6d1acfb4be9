# SPDX-License-Identifier: Apache-2.0
"""`pmni view`: the colours against known errors, the page in a real browser, and what can be wrong."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
import viser
from browser import Opened
from browser import live as browser_page  # noqa: F401
from conftest import SPHERE_CENTRE, SPHERE_RADIUS, make_sphere_arrays
from scipy.spatial.transform import Rotation
from serving import free_port, serve_once

from pmni_nerfstudio.cli import main as pmni
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.evaluation.metrics import transform_poses
from pmni_nerfstudio.viewer.view import MOST_ERROR_DEG, ResultPage, Subject, scale_colours


def true_sphere(world_from_unit: np.ndarray, growth: float = 0.0) -> trimesh.Trimesh:
    """The tests' sphere in the data's world, grown by so many of its units."""
    scale = np.cbrt(np.linalg.det(world_from_unit[:3, :3]))
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=SPHERE_RADIUS * scale + growth)
    return mesh.apply_translation(world_from_unit[:3, :3] @ SPHERE_CENTRE + world_from_unit[:3, 3])


@pytest.fixture
def subject(sphere_folder: Path) -> Subject:
    """The sphere with its true cameras, 2 units too large, beside the truth turned and moved by a known similarity."""
    scene = read_scene(sphere_folder)
    assert scene.c2w is not None
    moved = np.eye(4)
    moved[:3, :3] = 1.5 * Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix()
    moved[:3, 3] = [100.0, -50.0, 3.0]
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


def test_errors_of_normals_are_those_of_the_views(subject: Subject):
    assert subject.scene is not None
    true = true_sphere(subject.scene.world_from_unit)
    errors = Subject(title="", mesh=true, scene=subject.scene, cameras=subject.cameras).normal_errors_deg
    assert np.isfinite(errors).mean() > 0.5  # the ring of cameras sees no poles
    assert np.nanmedian(errors) < 1.0  # a pixel of 48x40 is 5 deg where the sphere faces the camera
    turn = Rotation.from_rotvec([0, 0, np.deg2rad(12.0)]).as_matrix()
    turned = Subject(
        title="",
        mesh=true,
        cameras=subject.cameras,
        scene=replace(subject.scene, normals=(subject.scene.normals.astype(float) @ turn.T).astype(np.float16)),
    )
    # About the optical axis: by 12 deg at the rim, by none where the sphere faces the camera.
    assert 3.0 < np.nanmean(turned.normal_errors_deg) < 12.5


def test_colours_of_values():
    colours = scale_colours(np.array([0.0, MOST_ERROR_DEG, np.nan]), MOST_ERROR_DEG).astype(int)
    assert colours[0, 2] > colours[0, 1]  # viridis begins dark blue and ends yellow
    assert colours[1, 0] > 200 and colours[1, 1] > 200 and colours[1, 2] < 100
    assert len(set(colours[2])) == 1


def test_the_page_in_a_browser(subject: Subject, browser_page: Opened):  # noqa: F811
    port = free_port()
    server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
    page = ResultPage(server, subject)
    browser_page.visit(f"http://127.0.0.1:{port}")
    plain = browser_page.canvas(until=lambda picture: (picture.max(axis=2) > 90).sum() > 20_000)
    for chosen in page.choices[1:]:
        page.colours.value = chosen
        page.draw()
        browser_page.canvas(until=lambda picture: np.abs(picture.astype(int) - plain).mean() > 1.0)
    browser_page.page.get_by_text("seen by no view").wait_for()
    page._clicked(next(iter(server.get_clients().values())), 2)
    browser_page.page.get_by_text("input, mesh").wait_for()
    assert browser_page.errors == [] and browser_page.requests == []
    server.stop()


@pytest.mark.slow
def test_the_command_serves_and_stops(sphere_folder: Path, tmp_path: Path):
    mesh = tmp_path / "mesh.ply"
    true_sphere(read_scene(sphere_folder).world_from_unit).export(mesh)
    command = [Path(sys.executable).parent / "pmni", "view", mesh, "--data", sphere_folder]
    assert "<html" in serve_once(command, "--port")


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
