# SPDX-License-Identifier: Apache-2.0
"""Scene folders: round trips of files, errors in one line, warnings, and detection of wrong axes."""

import copy
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.holes import holes_of
from helpers.scene_files import (
    HEIGHT,
    NAMES,
    NORMALS,
    VIEWS,
    WIDTH,
    add_world_normals,
    change_all_cameras,
    change_cameras,
    change_mask,
    change_normals,
    change_pose,
    ellipsoid,
    quantise,
)
from helpers.scenes import FILE_FROM_OPENCV, look_at
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.axes_check import AxisCorrection, axis_corrections, check_axes, measure_axes
from pmni_nerfstudio.data.camera_files import decompose_projection, read_cameras, write_cameras
from pmni_nerfstudio.data.images import read_exr, write_exr, write_png
from pmni_nerfstudio.data.scene import CAMERAS, read_scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.transforms import scale_of, transform_poses


@pytest.fixture(scope="module")
def truth() -> dict:
    return ellipsoid()


@pytest.fixture(scope="module")
def template(truth: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "scene"
    write_scene(root, **truth)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """Valid scene, to be broken."""
    return Path(shutil.copytree(template, tmp_path / "scene"))


# ---- round trips ----------------------------------------------------------------------------------------------------


def test_round_trip(root: Path, truth: dict) -> None:
    scene = read_scene(root)
    assert scene.names == NAMES
    assert (scene.num_views, scene.width, scene.height) == (VIEWS, WIDTH, HEIGHT)
    assert scene.c2w is not None
    np.testing.assert_allclose(scene.K, truth["K"], atol=1e-9 * 180)
    np.testing.assert_allclose(scene.c2w, truth["c2w"], atol=1e-9)
    np.testing.assert_allclose(scene.world_from_unit, truth["world_from_unit"], atol=1e-12)
    np.testing.assert_array_equal(scene.masks, truth["masks"])
    assert scene.normals.dtype == np.float16
    np.testing.assert_allclose(scene.normals.astype(np.float32), truth["normals"], atol=6e-4)
    assert scene.mesh_file == root / "mesh_Gt.ply"
    assert scene.image_files is None
    assert scene.depth_files is not None
    assert [path.name for path in scene.depth_files] == ["1.npy", "2.npy", "9.npy", "10.npy"]
    np.testing.assert_allclose(np.load(scene.depth_files[3]), truth["depths"][3], rtol=1e-6)
    assert scene.normal_files == tuple(root / NORMALS / f"{name}.exr" for name in NAMES)
    assert scene.mask_files == tuple(root / "mask" / f"{name}.png" for name in NAMES)
    assert scene.warnings == ()
    assert copy.deepcopy(scene) is scene
    assert not [path for path in root.rglob(".*")], "temporary files are left"


def test_files_follow_the_conventions_of_the_layout(root: Path, truth: dict) -> None:
    """Stored normals have y up and z towards the viewer, and world_mat takes the world to pixels, without our reader."""
    stored = read_exr(root / NORMALS / "9.exr")
    np.testing.assert_array_equal(stored, truth["normals"][2] * FILE_FROM_OPENCV)
    cameras = np.load(root / "cameras_sphere.npz")
    unit = np.array([0.2, -0.1, 0.3, 1])
    world = cameras["scale_mat_2"] @ unit
    pixel = cameras["world_mat_2"] @ world
    seen = truth["K"][2] @ (np.linalg.inv(truth["c2w"][2]) @ unit)[:3]
    np.testing.assert_allclose(pixel[:2] / pixel[2], seen[:2] / seen[2], atol=1e-9)
    assert np.linalg.norm(cameras["world_mat_2"][2, :3]) == pytest.approx(1), "K [R | t] of a proper rotation"


def test_round_trip_without_poses(tmp_path: Path, truth: dict) -> None:
    write_scene(tmp_path, **{**truth, "c2w": None, "mesh": None, "depths": None})
    scene = read_scene(tmp_path)
    assert scene.c2w is None
    assert scene.mesh_file is None
    assert scene.depth_files is None
    np.testing.assert_array_equal(scene.K, truth["K"])
    np.testing.assert_array_equal(scene.world_from_unit, np.eye(4))
    assert set(json.loads((tmp_path / "intrinsics.json").read_text())) == {"fl_x", "fl_y", "cx", "cy", "w", "h"}


def convert(root: Path, write: Callable[[Path, np.ndarray], None], suffix: str) -> None:
    for file in sorted((root / NORMALS).iterdir()):
        normals = read_exr(file)
        file.unlink()
        write(file.with_suffix(suffix), normals)


@pytest.mark.parametrize(
    ("write", "suffix", "tolerance"),
    [
        (lambda path, n: write_exr(path, n, half=True), ".exr", 1e-3),
        (lambda path, n: write_png(path, quantise(n, np.uint16)), ".png", 1e-3),
        (lambda path, n: write_png(path, quantise(n, np.uint8)), ".png", 6e-3),
        (lambda path, n: np.save(path, n.astype(np.float64)), ".npy", 1e-3),
    ],
    ids=["half", "png16", "png8", "npy"],
)
def test_formats_of_normals(root: Path, truth: dict, write, suffix: str, tolerance: float) -> None:
    convert(root, write, suffix)
    scene = read_scene(root)
    np.testing.assert_allclose(scene.normals.astype(np.float32), truth["normals"], atol=tolerance)
    assert scene.warnings == ()


def test_world_space_normals_equal_camera_space_ones(root: Path, truth: dict) -> None:
    add_world_normals(root, truth)
    scene = read_scene(root, "normal_world_space_GT")
    np.testing.assert_allclose(scene.normals.astype(np.float32), truth["normals"], atol=1e-3)
    assert scene.warnings == ()


def test_choice_of_the_normals_folder(root: Path) -> None:
    def chosen(**kwargs) -> str:
        return read_scene(root, **kwargs).normal_files[0].parent.name

    for name in ("normal_camera_space", "normal_camera_space_sdmunips"):
        shutil.copytree(root / NORMALS, root / name)
    assert chosen() == "normal_camera_space"  # the ground truth is not read where estimates are
    assert f"and not from {NORMALS}" in read_scene(root).warnings[0]
    assert chosen(normals_folder=NORMALS) == NORMALS
    assert chosen(normals_folder="normal_camera_space_sdmunips") == "normal_camera_space_sdmunips"
    shutil.rmtree(root / NORMALS)
    assert chosen() == "normal_camera_space"
    shutil.rmtree(root / "normal_camera_space")
    assert chosen() == "normal_camera_space_sdmunips"


def test_images_are_found_and_other_files_ignored(root: Path) -> None:
    (root / "mask" / ".DS_Store").write_text("")
    (root / "mask" / "notes.txt").write_text("")
    (root / "image").mkdir()
    for name in NAMES:
        (root / "image" / f"{name}.JPG").write_text("")
    images = read_scene(root).image_files
    assert images is not None
    assert [path.name for path in images] == ["1.JPG", "2.JPG", "9.JPG", "10.JPG"]


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_scale_factor_resamples_maps_and_intrinsics(root: Path, truth: dict, factor: float) -> None:
    scene = read_scene(root, scale_factor=factor)
    size = (round(WIDTH * factor), round(HEIGHT * factor))
    assert (scene.width, scene.height) == size
    assert scene.masks.shape == (VIEWS, *size[::-1])
    focal = 180 * factor
    np.testing.assert_allclose(
        scene.K[0],
        [[focal, 0, (35.2 + 0.5) * factor - 0.5], [0, focal * 1.02, 30.3 * factor - 0.5], [0, 0, 1]],
        atol=1e-9,
    )
    lengths = np.linalg.norm(scene.normals.astype(np.float32), axis=-1)
    np.testing.assert_allclose(lengths, scene.masks, atol=1e-3)
    np.testing.assert_allclose(scene.masks.mean(), truth["masks"].mean(), rtol=0.05)


def test_memory_of_twenty_views(tmp_path: Path) -> None:
    size = (612, 512)
    write_scene(tmp_path, **{**ellipsoid(focal=1400.0, views=2, size=size), "mesh": None, "depths": None})
    for folder, suffix in (("mask", ".png"), (NORMALS, ".exr")):
        for i in range(2, 20):
            shutil.copy(tmp_path / folder / f"{i % 2:02d}{suffix}", tmp_path / folder / f"{i:02d}{suffix}")
    cameras = dict(np.load(tmp_path / "cameras_sphere.npz"))
    np.savez(
        tmp_path / "cameras_sphere.npz",
        **{f"{kind}_mat_{i}": cameras[f"{kind}_mat_{i % 2}"] for i in range(20) for kind in ("world", "scale")},
    )
    tracemalloc.start()
    scene = read_scene(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scene.num_views == 20
    assert scene.normals.nbytes + scene.masks.nbytes < 50e6
    assert peak < 100e6


def test_reading_needs_no_torch() -> None:
    code = "import sys, pmni_nerfstudio.data.scene; sys.exit('torch' in sys.modules or 'nerfstudio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_writing_refuses_to_mix_scenes(root: Path, truth: dict) -> None:
    write_scene(root, **truth)  # the same files are replaced
    with pytest.raises(SceneError, match=r"cameras_sphere.npz: belongs to another scene"):
        write_scene(root, **{**truth, "c2w": None})
    (root / "mask" / "3.png").write_text("")
    with pytest.raises(SceneError, match=r"mask/3.png: belongs to another scene"):
        write_scene(root, **truth)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"names": ("10", "2", "9", "1")}, "natural order"),
        ({"names": ("1", "2", "9")}, "K: shape"),
        ({"normals": np.zeros((VIEWS, 5, 5, 3))}, "normals: shape"),
        ({"c2w": None, "K": np.arange(36.0).reshape(4, 3, 3)}, "share their intrinsics"),
    ],
)
def test_writing_checks_its_arguments(tmp_path: Path, truth: dict, change: dict, phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        write_scene(tmp_path, **{**truth, **change})
    assert not list(tmp_path.iterdir())


# ---- cameras --------------------------------------------------------------------------------------------------------

FACTORS = st.floats(1e-3, 1e3).flatmap(lambda x: st.sampled_from([x, -x]))


def random_camera(rng: np.random.Generator, skew: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    f = rng.uniform(0.5, 20) * WIDTH
    K = np.array(
        [[f, skew * f, WIDTH * rng.uniform(0.2, 0.8)], [0, f * rng.uniform(0.9, 1.1), HEIGHT * 0.4], [0, 0, 1]]
    )
    c2w = look_at(rng.uniform(1.5, 20) * Rotation.random(rng=rng).as_matrix()[0])
    c2w[:3, :3] = c2w[:3, :3] @ Rotation.from_rotvec(rng.uniform(-0.3, 0.3, 3)).as_matrix()
    return K, c2w


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), FACTORS, st.floats(-0.5, 0.5))
def test_decomposition_of_any_multiple(seed: int, factor: float, skew: float) -> None:
    K, c2w = random_camera(np.random.default_rng(seed), skew)
    got_K, got_c2w = decompose_projection(factor * K @ np.linalg.inv(c2w)[:3])
    np.testing.assert_allclose(got_K, K, atol=1e-9 * K[0, 0])
    np.testing.assert_allclose(got_c2w, c2w, atol=1e-9)
    assert np.linalg.det(got_c2w) == pytest.approx(1)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), FACTORS)
def test_cameras_round_trip(tmp_path_factory: pytest.TempPathFactory, seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    K, c2w = (np.stack(arrays) for arrays in zip(*(random_camera(rng) for _ in range(3))))
    world_from_unit = np.eye(4)
    world_from_unit[:3, :3] = rng.uniform(0.01, 500) * Rotation.random(rng=rng).as_matrix()
    world_from_unit[:3, 3] = rng.uniform(-100, 100, 3)
    file = tmp_path_factory.mktemp("cameras") / "cameras_sphere.npz"
    write_cameras(file, K, c2w, world_from_unit)
    arrays = {name: array * (factor if "world" in name else 1) for name, array in np.load(file).items()}
    np.savez(file, **arrays)
    got_K, got_c2w, got_world = read_cameras(file, 3)
    # Translations of up to 100 / 0.01 radii cost digits.
    np.testing.assert_allclose(got_K, K, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(got_c2w, c2w, atol=1e-7)
    np.testing.assert_array_equal(got_world, world_from_unit)


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_unknown_folder_of_normals(root: Path) -> None:
    with pytest.raises(SceneError, match=rf"no folder mask of normals.*\({NORMALS}\)"):
        read_scene(root, "mask")


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), 0.05])
def test_wrong_scale_factor(root: Path, factor: float) -> None:
    with pytest.raises(SceneError, match="scale_factor"):
        read_scene(root, scale_factor=factor)


# ---- warnings -------------------------------------------------------------------------------------------------------


def test_wrong_lengths_are_normalized_with_a_warning(root: Path, truth: dict) -> None:
    change_normals(root, lambda n: np.where(np.arange(WIDTH)[:, None] < 30, 0.9 * n, n), ["2"])
    scene = read_scene(root)
    np.testing.assert_allclose(scene.normals.astype(np.float32), truth["normals"], atol=1e-3)
    off = truth["masks"][1][:, :30].sum()
    assert len(scene.warnings) == 1
    assert re.search(rf"2\.exr: {off} \(.*normalized", scene.warnings[0])


def test_lengths_within_tolerance_cause_no_warning(root: Path, truth: dict) -> None:
    change_normals(root, lambda n: 1.04 * n)
    scene = read_scene(root)
    assert scene.warnings == ()
    np.testing.assert_allclose(scene.normals.astype(np.float32), truth["normals"], atol=1e-3)


def test_a_rim_without_normals_is_removed_from_the_mask(root: Path, truth: dict) -> None:
    """A mask one pixel too wide, with a hole inside: the hole stays."""
    mask = truth["masks"][1]
    kept = cv2.erode(mask.astype(np.uint8), np.ones((2, 2), np.uint8)).astype(bool)
    rim, hole = mask & ~kept, np.zeros_like(mask)
    hole[29:31, 35:37] = True
    assert kept[hole].all()
    change_normals(root, lambda n: np.where((rim | hole)[..., None], 0, n), ["2"])
    scene = read_scene(root)
    np.testing.assert_array_equal(scene.masks[1], kept)
    np.testing.assert_array_equal(scene.masks[[0, 2, 3]], truth["masks"][[0, 2, 3]])
    np.testing.assert_array_equal(scene.valid[1], kept & ~hole)
    assert not scene.normals[1][rim | hole].any()
    assert len(scene.warnings) == 1
    assert re.search(rf"2\.exr: {rim.sum()} of .* a rim without normals .* removed", scene.warnings[0])


@pytest.mark.parametrize("way", ["zero", "NaN", "mask_valid", "mask_valid over any values"])
def test_holes_are_part_of_the_silhouette_and_not_valid(root: Path, truth: dict, way: str) -> None:
    holes = holes_of(truth["masks"])
    for name, hole in zip(NAMES, holes):
        if way in ("zero", "NaN"):
            value = 0 if way == "zero" else np.nan
            change_normals(root, lambda n, hole=hole: np.where(hole[..., None], value, n), [name])
        elif way == "mask_valid over any values":
            change_normals(root, lambda n, hole=hole: np.where(hole[..., None], np.inf, n), [name])
    if way.startswith("mask_valid"):
        (root / "mask_valid").mkdir()
        for name, hole in zip(NAMES, holes):
            write_png(root / "mask_valid" / f"{name}.png", ~hole)
    scene = read_scene(root)
    np.testing.assert_array_equal(scene.masks, truth["masks"])
    np.testing.assert_array_equal(scene.valid, truth["masks"] & ~holes)
    expected = np.where(scene.valid[..., None], truth["normals"], 0)
    np.testing.assert_allclose(scene.normals.astype(np.float32), expected, atol=6e-4)
    assert len(scene.warnings) == 1
    for name, count in zip(NAMES, holes.sum(axis=(1, 2))):
        assert f"{name}: {count} (" in scene.warnings[0]


def test_mask_valid_tells_that_a_mask_without_normals_at_its_contour_is_right(root: Path, truth: dict) -> None:
    inner = np.stack([cv2.erode(m.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for m in truth["masks"]])
    (root / "mask_valid").mkdir()
    for name, pixels in zip(NAMES, inner):
        write_png(root / "mask_valid" / f"{name}.png", pixels)
    scene = read_scene(root)
    np.testing.assert_array_equal(scene.masks, truth["masks"])
    np.testing.assert_array_equal(scene.valid, inner)


def test_holes_survive_writing_and_scaling(truth: dict, tmp_path: Path) -> None:
    holes = holes_of(truth["masks"])
    normals = np.where(holes[..., None], 0, truth["normals"])
    write_scene(tmp_path, **{**truth, "normals": normals})
    scene = read_scene(tmp_path)
    np.testing.assert_array_equal(scene.valid, truth["masks"] & ~holes)
    half, whole = read_scene(tmp_path, scale_factor=0.5), truth["masks"]
    assert 0.8 < 4 * half.masks.sum() / whole.sum() < 1.2
    assert half.valid.sum() / half.masks.sum() == pytest.approx(scene.valid.sum() / whole.sum(), abs=0.03)
    lengths = np.linalg.norm(half.normals.astype(np.float32), axis=-1)
    np.testing.assert_allclose(lengths[half.valid], 1, atol=1e-3)
    assert not lengths[~half.valid].any()


def test_a_scene_without_holes_has_no_second_mask(root: Path) -> None:
    scene = read_scene(root)
    assert scene.valid is scene.masks and not scene.has_holes
    (root / "mask_valid").mkdir()
    for name in NAMES:
        write_png(root / "mask_valid" / f"{name}.png", np.ones((HEIGHT, WIDTH), bool))
    same = read_scene(root)
    assert same.valid is same.masks
    np.testing.assert_array_equal(same.normals, scene.normals)
    (root / "mask_valid" / "2.png").unlink()
    with pytest.raises(SceneError, match=r"mask_valid/2\.png: is missing"):
        read_scene(root)


def test_incomplete_images_are_ignored_with_a_warning(root: Path) -> None:
    (root / "image").mkdir()
    (root / "image" / "2.png").write_text("")
    scene = read_scene(root)
    assert scene.image_files is None
    assert len(scene.warnings) == 1
    assert "no image of 3 views (first 1)" in scene.warnings[0]


def without_order(warnings: tuple[str, ...]) -> list[str]:
    """Warnings but the one that wrong cameras fit the views, named 1, 2, 9, 10, in no order."""
    return [line for line in warnings if "no order fits" not in line]


def test_an_object_outside_the_unit_sphere_causes_a_warning(root: Path, truth: dict) -> None:
    aside = truth["c2w"][1].copy()
    aside[:3, 3] += 1.5 * aside[:3, 0]
    change_pose(root, truth, 1, aside)
    warnings = without_order(read_scene(root).warnings)
    assert len(warnings) == 1
    assert "in 1 of 4 views (first world_mat_1) most of the mask is outside" in warnings[0]


@pytest.mark.parametrize("missing", [False, True])
def test_a_world_without_a_unit_sphere_gets_one_from_the_masks(missing: bool, root: Path, truth: dict) -> None:
    """The cameras are the same in the data world; the object is where the true sphere is."""
    before = read_scene(root)
    change_scale_mats(root, None if missing else np.eye(4))
    scene = read_scene(root)
    assert len(scene.warnings) == 1
    cause = "has no scale_mat_i" if missing else "scale_mat_i is the identity, but the object is elsewhere"
    assert cause in scene.warnings[0] and "was fitted to the masks" in scene.warnings[0]
    world, size = before.world_from_unit, scale_of(before.world_from_unit)
    assert np.linalg.norm(scene.world_from_unit[:3, 3] - world[:3, 3]) < 0.3 * size
    assert 0.4 < scale_of(scene.world_from_unit) / size < 1.5
    assert scene.c2w is not None and before.c2w is not None
    poses = [transform_poses(s.world_from_unit, c2w) for s, c2w in ((scene, scene.c2w), (before, before.c2w))]
    np.testing.assert_allclose(poses[0], poses[1], atol=1e-4 * size)
    np.testing.assert_allclose(scene.K, before.K, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("missing", [False, True])
def test_the_worlds_own_unit_sphere_is_kept_if_it_holds_the_object(missing: bool, root: Path, truth: dict) -> None:
    write_cameras(root / CAMERAS, truth["K"], truth["c2w"], np.eye(4))
    change_scale_mats(root, None if missing else np.eye(4))
    scene = read_scene(root)
    np.testing.assert_array_equal(scene.world_from_unit, np.eye(4))
    assert len(scene.warnings) == missing
    assert all("the unit sphere around the world's origin is used" in line for line in scene.warnings)


def test_an_identity_is_named_where_cameras_do_not_look_at_the_unit_sphere(root: Path, truth: dict) -> None:
    backward = truth["c2w"].copy()
    backward[:, :3, [0, 2]] *= -1
    write_cameras(root / CAMERAS, truth["K"], backward, np.eye(4))
    with pytest.raises(SceneError, match="looks away from the unit sphere.*scale_mat is the identity.*origin"):
        read_scene(root)


def change_scale_mats(root: Path, value: np.ndarray | None) -> None:
    """Write the same matrix, or none, as all scale_mat_i."""
    change_cameras(root, **{f"scale_mat_{i}": lambda _: value for i in range(VIEWS)})


def test_cameras_of_an_image_twice_as_large_cause_a_warning(root: Path) -> None:
    change_all_cameras(root, np.diag([2.0, 2, 1, 1]))
    warnings = without_order(read_scene(root).warnings)
    assert len(warnings) == 1
    assert "principal point (70.4, 59.6) px is far from the middle of 72x60" in warnings[0]


def test_cameras_of_a_smaller_image_cause_a_warning(root: Path) -> None:
    change_all_cameras(root, np.diag([0.4, 0.4, 1, 1]))
    warnings = without_order(read_scene(root).warnings)
    assert len(warnings) == 2
    assert "in 4 of 4 views" in warnings[1]


def test_some_normals_facing_away_cause_a_warning(root: Path) -> None:
    change_normals(root, lambda n: np.where(np.arange(WIDTH)[:, None] < 33, -n, n), ["2"])
    warnings = read_scene(root).warnings
    assert len(warnings) == 1
    assert re.search(r"in 1 views more than 10% .*worst 2\.exr: 4\d%", warnings[0])


# ---- axes -----------------------------------------------------------------------------------------------------------


def test_axis_corrections_are_all_signed_permutations() -> None:
    assert len({correction.axes.tobytes() for correction in axis_corrections()}) == 48
    np.testing.assert_array_equal(axis_corrections()[0].axes, np.eye(3))
    assert [correction.advice for correction in axis_corrections()[:4]] == [
        "",
        *(f"flip {axis}" for axis in ("z", "y", "x")),
    ]


@pytest.mark.parametrize("correction", axis_corrections()[1:], ids=lambda correction: correction.advice)
def test_all_48_axis_conventions_are_distinguished(truth: dict, correction: AxisCorrection) -> None:
    opencv = np.diag(FILE_FROM_OPENCV)
    change = opencv @ correction.axes.T @ opencv
    evidence = [
        measure_axes(normals @ change.T, mask, K, opencv)
        for normals, mask, K in zip(truth["normals"], truth["masks"], truth["K"])
    ]
    with pytest.raises(SceneError, match=f": {correction.advice} in all files"):
        check_axes(Path("normals"), [Path(name) for name in NAMES], evidence)


@pytest.mark.parametrize(
    "correction", [*axis_corrections()[1:9], axis_corrections()[-1]], ids=lambda correction: correction.advice
)
def test_wrong_axes_are_detected_and_the_advice_corrects_them(
    root: Path, truth: dict, correction: AxisCorrection
) -> None:
    wrong = correction.axes.T
    change_normals(root, lambda n: n @ wrong.T)
    with pytest.raises(SceneError) as caught:
        read_scene(root)
    message = str(caught.value)
    assert "\n" not in message
    assert f": {correction.advice} in all files" in message
    assert message.startswith(str(root / NORMALS))
    # Follow the advice of the message: first the order of channels, then the signs.
    order = re.search(r"in the order (\w), (\w), (\w)", message)
    channels = ["RGB".index(letter) for letter in order.groups()] if order else [0, 1, 2]
    flipped = re.search(r"flip ([xyz](?: and [xyz])*) in all", message)
    signs = np.array([-1 if flipped and axis in flipped[1].split(" and ") else 1 for axis in "xyz"])
    change_normals(root, lambda n: n[..., channels] * signs)
    np.testing.assert_allclose(read_scene(root).normals.astype(np.float32), truth["normals"], atol=1e-3)


@pytest.mark.parametrize("index", [1, 9, 20, 47])
def test_wrong_world_axes_are_detected(root: Path, truth: dict, index: int) -> None:
    correction = axis_corrections()[index]
    add_world_normals(root, truth, correction.axes.T)
    with pytest.raises(SceneError, match=f"not plain world axes .*: {correction.advice} in all files"):
        read_scene(root, "normal_world_space_GT")


def noisy(sigma_deg: float) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)

    def change(normals: np.ndarray) -> np.ndarray:
        turn = Rotation.from_rotvec(np.deg2rad(sigma_deg) * rng.standard_normal((WIDTH * HEIGHT, 3)) / np.sqrt(3))
        return turn.apply(normals.reshape(-1, 3)).reshape(normals.shape).astype(np.float32)

    return change


def test_noise_is_not_mistaken_for_wrong_axes(root: Path) -> None:
    change_normals(root, noisy(25))
    read_scene(root)


def test_a_flip_is_detected_despite_noise(root: Path) -> None:
    noise = noisy(10)
    change_normals(root, lambda n: noise(n) * np.array([1, -1, 1], np.float32))
    with pytest.raises(SceneError, match="flip y in all files"):
        read_scene(root)


def test_an_object_cut_by_masks_that_show_only_its_upper_half(root: Path, truth: dict) -> None:
    """Normals do not point outward along the straight lower edge, so the rim alone must not reject the scene."""
    for i, name in enumerate(NAMES):
        change_mask(root, lambda mask: mask & (np.arange(HEIGHT)[:, None] < HEIGHT // 2), name)
        assert truth["masks"][i][: HEIGHT // 2].any()
    assert read_scene(root).warnings == ()


def test_an_object_that_fills_the_frame(tmp_path: Path) -> None:
    """With almost no rim, facing alone detects a flipped z."""
    maps = ellipsoid(focal=900.0)
    maps["masks"][:, :6, :6] = False
    maps["normals"][:, :6, :6] = 0
    maps["mesh"] = maps["depths"] = None
    write_scene(tmp_path, **maps)
    (warning,) = read_scene(tmp_path).warnings
    assert "white along the image border" in warning
    change_normals(tmp_path, lambda n: n * np.array([1, 1, -1], np.float32))
    with pytest.raises(SceneError, match="flip z in all files"):
        read_scene(tmp_path)
