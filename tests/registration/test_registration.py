# SPDX-License-Identifier: Apache-2.0
"""The registration pipeline: command, files, warnings, cache, and training that starts from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from helpers.holes import views_with_holes
from helpers.registration import rotation_errors_deg, turned
from helpers.scenes import capture, make_sphere
from scipy.spatial import cKDTree

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.data.camera_files import read_cameras
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.registration import pipeline
from pmni_nerfstudio.registration.alternation import AlternationSchedule
from pmni_nerfstudio.registration.cache import load_registration, registration_key, save_registration
from pmni_nerfstudio.registration.monitoring import Monitor
from pmni_nerfstudio.registration.pipeline import Registration, RegistrationSettings, register
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.starts import Start
from pmni_nerfstudio.registration.views import views_of_scene
from pmni_nerfstudio.threads import one_thread
from pmni_nerfstudio.training import initialization as start_module

SYNTH = ["--views", "12", "--width", "96", "--height", "80", "--jitter", "1", "--mesh-resolution", "64"]


def synth(out: Path, *options: str) -> Path:
    main(["synth", str(out), *SYNTH, *options, "--truth", str(out) + "_truth"])
    return out


def truth_of(folder: Path) -> Poses:
    return Poses.from_c2w(np.load(f"{folder}_truth/truth.npz")["c2w"])


def unit_poses(folder: Path, poses_file: Path) -> Poses:
    """Exported poses in the unit-sphere world."""
    world_from_unit = read_scene(folder).world_from_unit
    c2w = np.load(poses_file)
    c2w[:, :3, 3] = (c2w[:, :3, 3] - world_from_unit[:3, 3]) / world_from_unit[0, 0]
    return Poses.from_c2w(c2w)


def surface_error(folder: Path, mesh_file: Path, poses: Poses) -> float:
    """Mean distance of the vertices to the ground-truth surface after aligning the poses, in radii of the unit sphere."""
    world_from_unit = read_scene(folder).world_from_unit
    truth = np.load(f"{folder}_truth/truth.npz")
    mesh, true_mesh = trimesh.load(mesh_file), trimesh.load(f"{folder}_truth/mesh_Gt.ply")
    unit = (mesh.vertices - world_from_unit[:3, 3]) / world_from_unit[0, 0]
    true_unit = (true_mesh.vertices - truth["scale_mat"][:3, 3]) / truth["scale_mat"][0, 0]
    scale, rotation, shift = align(poses, truth_of(folder))
    return float(cKDTree(true_unit).query(scale * unit @ rotation.T + shift)[0].mean())


@pytest.fixture(scope="module")
def rough_scene(tmp_path_factory) -> Path:
    return synth(
        tmp_path_factory.mktemp("rough") / "scene", "--shape", "figure", "--rotation-noise-deg", "12",
        "--translation-noise", "0.4", "--seed", "2",
    )  # fmt: skip


@pytest.fixture(scope="module")
def registered(rough_scene, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("registered")
    main(["register", str(rough_scene), "--output-dir", str(out)])
    return out


def test_register_brings_rough_poses_back(rough_scene, registered):
    rough = Poses.from_c2w(read_scene(rough_scene).c2w)
    assert rotation_errors_deg(rough, truth_of(rough_scene)).mean() > 6
    poses = unit_poses(rough_scene, registered / "poses.npy")
    errors = rotation_errors_deg(poses, truth_of(rough_scene))
    assert errors.mean() < 0.3
    assert errors.max() < 1.0
    # In the data world, about where the rough poses put it.
    mesh = trimesh.load(registered / "surface.ply")
    scene = read_scene(rough_scene)
    middle = mesh.bounds.mean(axis=0)
    assert np.linalg.norm(middle - scene.world_from_unit[:3, 3]) < 0.25 * scene.world_from_unit[0, 0]
    assert mesh.is_watertight and mesh.volume > 0
    assert surface_error(rough_scene, registered / "surface.ply", poses) < 0.02


def test_files_of_register(rough_scene, registered):
    scene = read_scene(rough_scene)
    K, c2w, world_from_unit = read_cameras(registered / "cameras_refined.npz", scene.num_views)
    np.testing.assert_allclose(K, scene.K, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(world_from_unit, scene.world_from_unit)
    np.testing.assert_allclose(c2w[:, :3, 3], unit_poses(rough_scene, registered / "poses.npy").centers(), atol=1e-6)
    figures = json.loads((registered / "registration.json").read_text())
    assert [view["name"] for view in figures["views"]] == list(scene.names)
    assert all(0.5 < view["confidence"] <= 1 and view["status"] == "ok" for view in figures["views"])
    assert 0 < figures["cost"] < 0.3 and figures["inlier_share"] > 0.7
    assert (
        figures["seconds"]["total"] > 0
        and figures["hypotheses"] == []
        and (figures["verdict"], figures["reasons"]) == ("ok", [])
    )
    assert set(figures["versions"]) >= {"python", "torch", "pmni-nerfstudio"}
    assert len(json.loads((registered / "transforms.json").read_text())["frames"]) == scene.num_views
    assert (registered / "registration.png").stat().st_size > 20_000


@pytest.mark.slow
def test_register_brings_rough_poses_back_from_views_with_holes(rough_scene):
    scene = read_scene(rough_scene)
    views = views_with_holes(views_of_scene(scene))
    assert 0.2 < 1 - views.valid.sum() / views.masks.sum() < 0.35
    result = register(views, scene.c2w)
    errors = rotation_errors_deg(Poses.from_c2w(result.c2w), truth_of(rough_scene))
    assert errors.mean() < 0.4 and errors.max() < 1.2
    assert result.verdict.name == "ok"


@pytest.mark.slow
def test_contradictory_normals_are_reported(rough_scene, monkeypatch):
    """Rotated about each view's optical axis, the normals still face the camera but belong to no common shape.

    The coarse levels tell.
    """
    monkeypatch.setattr(pipeline, "_MAX_STARTS", 1)  # no start fits; one takes a quarter of the time of all four
    views = views_of_scene(read_scene(rough_scene))
    normals = views.normals.copy()
    normals[::2, ..., :2] *= -1
    normals[1::2, ..., :2] = normals[1::2, ..., [1, 0]] * [1, -1]
    settings = RegistrationSettings(alternation=AlternationSchedule(levels=AlternationSchedule().levels[:2]))
    result = register(replace(views, normals=normals), read_scene(rough_scene).c2w, settings)
    assert any("no surface was found that the views agree on" in line for line in result.verdict.reasons)
    assert result.verdict.name == "failed"
    assert result.agreement.confidence.max() < 0.7


def test_register_is_the_same_for_a_seed(rough_scene, registered):
    """The last digits of single precision depend on memory alignment, and the rounds amplify them."""
    scene = read_scene(rough_scene)
    again = Poses.from_c2w(register(views_of_scene(scene), scene.c2w, RegistrationSettings(seed=0)).c2w)
    before = unit_poses(rough_scene, registered / "poses.npy")
    assert rotation_errors_deg(again, before).max() < 0.1


@pytest.mark.slow
def test_register_without_poses(tmp_path):
    folder = synth(tmp_path / "scene", "--shape", "figure", "--no-poses", "--clockwise", "--elevation", "35")
    main(["register", str(folder), "--output-dir", str(tmp_path / "out")])
    poses = unit_poses(folder, tmp_path / "out" / "poses.npy")
    errors = rotation_errors_deg(poses, truth_of(folder))
    assert errors.mean() < 0.3
    assert errors.max() < 1.0
    figures = json.loads((tmp_path / "out" / "registration.json").read_text())
    tried = figures["hypotheses"]
    assert min(tried, key=lambda h: h["cost"])["name"].startswith("clockwise")
    assert any(h["pruned"] for h in tried)
    # Unit sphere, y up.
    mesh = trimesh.load(tmp_path / "out" / "surface.ply")
    assert 0.7 < np.linalg.norm(mesh.vertices, axis=1).max() <= 1.0
    assert poses.centers()[:, 1].min() > 0


def test_outlier_views_are_reported():
    """One view shows another object: it is named and left out, and the other poses are recovered."""
    scene, views, truth = capture(shape="figure")
    other = capture(shape="knot")[1]
    normals, masks = views.normals.copy(), views.masks.copy()
    normals[5], masks[5] = other.normals[5], other.masks[5]
    mixed = replace(views, normals=normals, masks=masks)
    registration = register(mixed, turned(truth, 4.0).c2w())
    assert np.flatnonzero(~registration.trusted).tolist() == [5]
    assert any(views.names[5] in warning and "left out" in warning for warning in registration.verdict.reasons)
    others = [i for i in range(len(views)) if i != 5]
    errors = rotation_errors_deg(Poses.from_c2w(registration.c2w).subset(others), truth.subset(others))
    assert errors.mean() < 0.4
    assert registration.agreement.confidence[5] < 0.6 * registration.agreement.confidence[others].min()


@pytest.fixture(scope="module")
def sphere_registration() -> Registration:
    scene = make_sphere().in_memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_MAX_STARTS", 1)  # all poses of a sphere fit equally
        return register(views_of_scene(scene), scene.c2w)


def test_ambiguous_poses_of_a_sphere_are_reported(sphere_registration):
    assert any("the poses are ambiguous" in warning for warning in sphere_registration.verdict.reasons)
    assert sphere_registration.surface.exists


def test_cache_is_keyed_by_content_and_restores_the_registration(sphere_scene, sphere_registration, tmp_path):
    views, settings = views_of_scene(sphere_scene), RegistrationSettings()
    key = registration_key(views, sphere_scene.c2w, settings)
    assert key == registration_key(views_of_scene(sphere_scene), sphere_scene.c2w.copy(), RegistrationSettings())
    moved = sphere_scene.c2w.copy()
    moved[0, 0, 3] += 1e-9
    others = [registration_key(views, moved, settings), registration_key(views, None, settings)]
    others.append(registration_key(views, sphere_scene.c2w, RegistrationSettings(seed=1)))
    others.append(registration_key(views.subset(range(6)), sphere_scene.c2w, settings))
    assert len({key, *others}) == 5

    registration = sphere_registration
    save_registration(tmp_path / "r.npz", registration)
    again = load_registration(tmp_path / "r.npz")
    np.testing.assert_array_equal(again.c2w, registration.c2w)
    np.testing.assert_array_equal(again.surface.sdf, registration.surface.sdf)
    np.testing.assert_array_equal(again.agreement.confidence, registration.agreement.confidence)
    assert again.verdict == registration.verdict and again.seconds == registration.seconds


@pytest.mark.slow
def test_training_starts_from_the_registration_and_never_repeats_it(tmp_path, monkeypatch):
    """ns-train, resume and export of a scene without poses."""
    from helpers.training import make_config
    from nerfstudio.scripts.train import _set_random_seed

    folder = synth(tmp_path / "scene", "--shape", "figure", "--no-poses", "--elevation", "20")
    calls = []
    shown = start_module.register_with_progress
    monkeypatch.setattr(start_module, "register_with_progress", lambda *a: calls.append(1) or shown(*a))

    def train(steps: int, **changes) -> Path:
        config = make_config("pmni", folder, tmp_path / "runs", steps, pipeline__model__registration=True, **changes)
        config.save_config()
        _set_random_seed(0)
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        trainer.train()
        return config.get_base_dir()

    base = train(60)
    assert len(calls) == 1
    cached = list((base / "registration").glob("*.npz"))
    assert len(cached) == 1
    train(5, timestamp="again")
    assert len(calls) == 1  # the same scene and settings: from the cache
    train(80, load_dir=base / "nerfstudio_models")
    assert len(calls) == 1

    main(
        [
            "export",
            "--load-config",
            str(base / "config.yml"),
            "--output-dir",
            str(tmp_path / "out"),
            "--resolution",
            "96",
        ]
    )
    poses = unit_poses(folder, tmp_path / "out" / "poses.npy")
    # Training moves the poses by Gauss-Newton steps, but not away from the ground truth.
    registered = Poses.from_c2w(load_registration(cached[0]).c2w)
    assert not np.allclose(poses.c2w(), registered.c2w(), atol=1e-5)
    before, after = (rotation_errors_deg(p, truth_of(folder)).mean() for p in (registered, poses))
    assert after < min(0.3, before + 0.02)
    assert surface_error(folder, tmp_path / "out" / "mesh.ply", poses) < 0.02


def test_errors_are_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["register", str(tmp_path / "no"), "--output-dir", str(tmp_path / "out")])
    assert caught.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_view_that_is_found_at_last_is_not_left_out():
    """A view that failed at the coarse levels, and fits the finished surface once it is searched again."""
    _, views, truth = capture(shape="figure", width=96, height=80)
    lost = truth.replaced([4], truth.subset([9]))
    inliers = np.arange(len(truth)) != 4
    attempt = pipeline._Attempt(Start("rough poses", lost, lost, 0.0), lost, None, inliers, None)
    _, fine = RegistrationSettings().alternation.split_at_restart()
    with one_thread():
        poses, _, found, relocated = pipeline._finish(views, attempt, fine, 0, Monitor(None, None, len(views), 1, 0.5))
    assert found.all() and relocated.tolist() == (~inliers).tolist()
    assert rotation_errors_deg(poses, truth).max() < 1
