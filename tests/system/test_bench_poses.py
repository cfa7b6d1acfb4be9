# SPDX-License-Identifier: Apache-2.0
"""benchmarks/bench_poses.py: scores of right, wrong and missing poses, scenes with their truth, and the Open3D baseline."""

from __future__ import annotations

import importlib
import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers.documentation import ROOT
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.registration.views import views_of_scene
from pmni_nerfstudio.synth.rig import ring


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def true_poses(views: int = 12) -> np.ndarray:
    return ring(views, 25.0, 15.0, 1.0, False, np.random.default_rng(3))


def moved(c2w: np.ndarray, seed: int = 0) -> np.ndarray:
    """The poses in another world: rotated, scaled and shifted."""
    rng = np.random.default_rng(seed)
    similarity = np.eye(4)
    similarity[:3, :3] = 2.5 * Rotation.random(rng=rng).as_matrix()
    similarity[:3, 3] = rng.normal(size=3)
    return transform_poses(similarity, c2w)


# ---- scores ---------------------------------------------------------------------------------------------------------


def score(c2w: np.ndarray, c2w_true: np.ndarray):
    return importlib.import_module("pose_scores").score(c2w, c2w_true)


def test_true_poses_in_another_world_have_no_error():
    s = score(moved(true_poses()), true_poses())
    assert (s.views, s.registered, s.under_1deg, s.under_5deg) == (12, 12, 12, 12)
    assert s.mean_deg < 1e-3 and s.worst_deg < 1e-3


def test_wrong_views_do_not_spread_their_error_over_the_others():
    c2w = moved(true_poses())
    for view, degrees in ((2, 3.0), (5, 40.0), (6, 60.0), (7, 170.0), (8, 100.0)):
        c2w[view, :3, :3] = c2w[view, :3, :3] @ Rotation.from_rotvec([0, np.deg2rad(degrees), 0]).as_matrix()
    s = score(c2w, true_poses())
    assert (s.registered, s.under_1deg, s.under_5deg) == (12, 7, 8)
    assert s.worst_deg == pytest.approx(170, abs=0.5)
    assert s.mean_deg == pytest.approx((3 + 40 + 60 + 170 + 100) / 12, abs=0.5)


def test_views_without_a_pose_are_not_registered():
    c2w = moved(true_poses())
    c2w[[0, 4]] = np.nan
    s = score(c2w, true_poses())
    assert (s.views, s.registered, s.under_1deg) == (12, 10, 10)
    assert s.worst_deg < 1e-3


def test_exchanged_views_are_wrong():
    c2w = moved(true_poses())
    c2w[[3, 9]] = c2w[[9, 3]]
    s = score(c2w, true_poses())
    assert (s.registered, s.under_5deg) == (12, 10)
    assert s.worst_deg > 90


def test_no_pose_at_all_has_no_error_to_show():
    s = score(np.full((12, 4, 4), np.nan), true_poses())
    assert (s.registered, s.under_5deg, s.mean_deg, s.worst_deg) == (0, 0, None, None)


def test_poses_of_another_number_of_views_are_refused():
    with pytest.raises(ValueError, match="11 poses for 12 views"):
        score(true_poses()[:11], true_poses())


# ---- scenes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(benchmarks_on_path: None):
    return importlib.import_module("bench_poses")


def test_scenes_are_written_without_poses(bench, tmp_path: Path):
    by_order = {order: bench.make_case(tmp_path / order, "figure", order, (6, 40, 34), 1) for order in bench.ORDERS}
    for case in by_order.values():
        scene = read_scene(case.folder)
        assert scene.c2w is None and scene.num_views == len(case.c2w_true) == 6
    ordered, shuffled = by_order["ring"].c2w_true, by_order["shuffled"].c2w_true
    assert not np.allclose(ordered, shuffled)
    assert np.allclose(np.sort(ordered[:, 0, 3]), np.sort(shuffled[:, 0, 3]))
    views = by_order["handheld"].c2w_true[:, :3, :3]
    assert np.allclose(views @ views.transpose(0, 2, 1), np.eye(3)) and np.allclose(np.linalg.det(views), 1)


def test_own_scene_and_its_truth(bench, tmp_path: Path):
    made = bench.make_case(tmp_path / "own", "figure", "ring", (6, 40, 34), 1)
    np.save(tmp_path / "truth.npy", made.c2w_true)
    np.savez(tmp_path / "truth.npz", c2w=made.c2w_true)
    for name in ("truth.npy", "truth.npz"):
        assert np.array_equal(bench.own_case(made.folder, tmp_path / name).c2w_true, made.c2w_true)
    np.save(tmp_path / "fewer.npy", made.c2w_true[:5])
    with pytest.raises(PmniError, match="for 6 views"):
        bench.own_case(made.folder, tmp_path / "fewer.npy")


# ---- methods --------------------------------------------------------------------------------------------------------


def test_colmap_gets_pictures_masks_and_camera(bench, tmp_path: Path):
    case = bench.make_case(tmp_path / "scene", "figure", "ring", (3, 40, 34), 1)
    scene = read_scene(case.folder)
    bench.write_pictures(scene, True, 4, tmp_path)
    assert sorted(p.name for p in (tmp_path / "image").iterdir()) == ["000.png", "001.png", "002.png"]
    assert (tmp_path / "mask" / "000.png.png").is_file()
    camera = json.loads((tmp_path / "camera.json").read_text())
    assert camera["fx"] == pytest.approx(4 * scene.K[0, 0, 0])
    assert camera["cx"] == pytest.approx(4 * 20)  # the middle of 40 pixels


def test_a_missing_pycolmap_and_a_failed_method_are_rows_of_the_table(bench, tmp_path: Path):
    case = bench.Case("case", tmp_path, true_poses())

    def colmap(case, out: Path) -> np.ndarray:
        return bench.colmap(case, out, False, 4, lambda: bench.pycolmap_python(str(tmp_path / "no_such_python")))

    def failing(case, out: Path) -> np.ndarray:
        raise PmniError("no poses")

    missing = bench.measure("normals", colmap, case, tmp_path / "a")
    assert missing.score is None and bench.cells(missing)[0] == "not installed"
    failed = bench.measure("pmni", failing, case, tmp_path / "b")
    assert failed.note == "no poses" and bench.cells(failed)[0] == "0 of 12"


def test_a_registration_that_fails_after_it_wrote_its_poses_counts(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\ncp {tmp_path}/result.npy "$6/poses.npy"\nexit 2\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    np.save(tmp_path / "result.npy", true_poses())
    out = tmp_path / "out"
    out.mkdir()
    assert np.array_equal(bench.register(bench.Case("case", tmp_path, true_poses()), out), true_poses())


def test_pose_graph_brings_poses_back_despite_wrong_pairs():
    module = importlib.import_module("open3d_poses")
    c2w = true_poses(8)
    T = c2w.copy()
    T[:, :3, 3] = 0  # object frames: cameras moved into the object

    def pair(i: int, j: int, fitness: float, turn_deg: float = 0.0):
        transform = np.linalg.inv(T[j]) @ T[i]
        transform[:3, :3] = Rotation.from_rotvec([np.deg2rad(turn_deg), 0, 0]).as_matrix() @ transform[:3, :3]
        return module.Pair(i, j, transform, fitness, 1000 * np.eye(6))

    pairs = [pair(i, j, 0.9) for i, j in combinations(range(7), 2) if (i, j) != (0, 3)]
    pairs.append(pair(0, 3, 0.5, turn_deg=120))
    nodes = module.optimize(pairs, 8, module.Options())
    assert np.isnan(nodes[7]).all()  # no pair holds it
    s = score(nodes, T)
    assert (s.registered, s.under_1deg) == (7, 7)


def test_open3d_registers_neighboring_views(bench, tmp_path: Path):
    c2w = ring(24, 25.0, 15.0, 0.0, False, np.random.default_rng(0))[[0, 2, 1, 3]]
    K = bench.intrinsics(76, 64, 15.0)
    masks, normals, _ = bench.render(bench.SHAPES["figure"], K, c2w, 76, 64)
    write_scene(
        tmp_path / "scene",
        names=["0", "1", "2", "3"],
        K=np.broadcast_to(K, (4, 3, 3)),
        c2w=None,
        world_from_unit=np.eye(4),
        masks=masks,
        normals=normals,
    )
    views = views_of_scene(read_scene(tmp_path / "scene"))
    s = score(importlib.import_module("open3d_poses").open3d_poses(views), c2w)
    assert (s.registered, s.under_5deg) == (4, 4)
