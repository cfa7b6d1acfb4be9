# SPDX-License-Identifier: Apache-2.0
"""Assignment of numbered cameras to named views, on views of an ellipsoid that only one order fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.scenes import AnalyticScene, Ellipsoid, analytic_scene, fitting_intrinsics, look_at

from pmni_nerfstudio.data.camera_order import candidate_orders, choose_order, numbers_in
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.silhouette_coherence import Fit, measure_fit

COUNT = 12
NATURAL = tuple(f"turn{i}" for i in range(COUNT))


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    rng = np.random.default_rng(5)
    eyes = rng.normal(size=(COUNT, 3))
    c2w = np.stack([look_at(15 * eye / np.linalg.norm(eye)) for eye in eyes])
    surface = Ellipsoid((0.1, -0.05, 0.0), (0.8, 0.35, 0.6))
    world = np.diag([2.0, 2.0, 2.0, 1.0])
    return analytic_scene(surface.intersect, fitting_intrinsics(64, 56, 15.0), c2w, (64, 56), world, NATURAL)


def fit(truth: AnalyticScene, cameras: np.ndarray) -> Fit:
    return measure_fit(list(truth.masks), list(truth.normals), truth.K, truth.c2w[cameras])


def test_only_the_right_cameras_fit(truth: AnalyticScene):
    right = fit(truth, np.arange(COUNT))
    assert right.silhouettes > 0.97 and right.normals > 0.85
    for seed in range(5):
        wrong = fit(truth, np.random.default_rng(seed).permutation(COUNT))
        assert wrong.score < right.score - 0.3
    without_normals = measure_fit(list(truth.masks), None, truth.K, truth.c2w)
    assert without_normals.silhouettes == right.silhouettes and without_normals.normals == 0


def test_a_fit_does_not_depend_on_world_scale_or_place(truth: AnalyticScene):
    far = truth.data_c2w.copy()
    far[:, :3, 3] += [4e5, 5e6, 200]
    moved = measure_fit(list(truth.masks), list(truth.normals), truth.K, far)
    assert moved.silhouettes == pytest.approx(fit(truth, np.arange(COUNT)).silhouettes, abs=0.01)


@pytest.mark.parametrize(
    ("names", "cameras", "rules"),
    [
        (["000", "001", "002"], range(3), ["the numbers"]),
        (["a_1", "a_2", "a_10"], [1, 2, 10], ["the numbers", "the order of text"]),
        (["1", "2", "3"], range(3), ["counted from 1"]),
        (["1", "2", "3"], range(4), ["the numbers in the names", "counted from 1"]),
        (["000", "001", "003"], range(4), ["the numbers"]),
        (["IMG_17", "IMG_18"], range(2), ["counted from 17"]),
        (["left", "right"], range(2), ["natural order"]),
        (["a1b1", "a2b2"], [0, 1], ["natural order"]),
        (["left", "right"], range(3), []),
        (["9", "10", "11"], range(3), ["counted from 9", "the order of text"]),
    ],
)
def test_candidates(names: list[str], cameras: list[int], rules: list[str]):
    found = candidate_orders(names, cameras)
    assert len(found) == len(rules)
    assert all(rule in candidate.rule for rule, candidate in zip(rules, found))


def test_other_files_say_how_views_were_counted():
    (only,) = candidate_orders(["front", "top"], range(3), {"photographs": ["back", "front", "top"]})
    assert only.cameras == (1, 2) and "photographs" in only.rule


def test_the_number_of_a_name():
    assert numbers_in(["turn_1_left", "turn_12_left"]) == [1, 12]
    assert numbers_in(["0", "00"]) == [0, 0] and numbers_in(["a", "b"]) is None and numbers_in(["1a", "2b"]) is None


def test_the_order_is_chosen_by_the_maps(truth: AnalyticScene):
    for order in (sorted(NATURAL), NATURAL):
        camera = {name: i for i, name in enumerate(order)}
        inverse = np.array([NATURAL.index(name) for name in order])  # camera i is that of view inverse[i]
        chosen, (line,) = choose_order(
            Path("cameras.npz"),
            candidate_orders(NATURAL, range(COUNT)),
            lambda numbers: fit(truth, inverse[list(numbers)]),
        )
        assert chosen.cameras == tuple(camera[name] for name in NATURAL)
        assert chosen.rule in line and "fits the maps best" in line


def test_no_order_fits(truth: AnalyticScene):
    mixed = np.random.default_rng(1).permutation(COUNT)
    with pytest.raises(SceneError, match="no order fits the maps .*leading zeros"):
        choose_order(Path("cameras.npz"), candidate_orders(NATURAL, range(COUNT)), lambda n: fit(truth, mixed[list(n)]))


def test_a_ball_leaves_the_order_open():
    chosen, (line,) = choose_order(
        Path("cameras.npz"), candidate_orders(NATURAL, range(COUNT)), lambda numbers: Fit(1.0, 1.0)
    )
    assert chosen.cameras == tuple(range(COUNT)) and "another order as well" in line


@pytest.mark.parametrize("world_space", [False, True])
def test_a_scene_folder_whose_cameras_are_in_the_order_of_text(truth: AnalyticScene, tmp_path: Path, world_space: bool):
    truth.write(tmp_path)
    if world_space:
        from pmni_nerfstudio.data.images import write_exr

        (tmp_path / "normal_camera_space_GT").rename(tmp_path / "normal_world_space_GT")
        for i, name in enumerate(NATURAL):
            write_exr(tmp_path / "normal_world_space_GT" / f"{name}.exr", truth.stored_normals(i, "world"))
    scene = read_scene(tmp_path)
    assert not any("order" in line for line in scene.warnings)
    arrays = dict(np.load(tmp_path / "cameras_sphere.npz"))
    text = {f"{kind}_mat_{i}": arrays[f"{kind}_mat_{NATURAL.index(name)}"]
            for i, name in enumerate(sorted(NATURAL)) for kind in ("world", "scale")}  # fmt: skip
    np.savez(tmp_path / "cameras_sphere.npz", **text)
    read = read_scene(tmp_path)
    assert read.c2w is not None
    np.testing.assert_allclose(read.c2w, truth.c2w, atol=1e-9)
    assert "the order of text" in read.warnings[-1]
    if world_space:
        return  # cameras in no order turn the normals away
    mixed = np.random.default_rng(2).permutation(COUNT)
    np.savez(tmp_path / "cameras_sphere.npz", **{f"{k}_mat_{i}": arrays[f"{k}_mat_{j}"]
             for i, j in enumerate(mixed) for k in ("world", "scale")})  # fmt: skip
    assert "no order fits the maps" in read_scene(tmp_path).warnings[-1]
