# SPDX-License-Identifier: Apache-2.0
"""The scene folder: what is written is read, each mistake is named in one line, and wrong axes are found."""

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
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.axes_check import Mend, judge_axes, mends, weigh_axes
from pmni_nerfstudio.data.camera_files import decompose_projection, read_cameras, write_cameras
from pmni_nerfstudio.data.images import read_exr, read_mask, write_exr, write_png
from pmni_nerfstudio.data.scene import read_scene, write_scene
from pmni_nerfstudio.errors import SceneError

WIDTH, HEIGHT, VIEWS = 72, 60, 4
NAMES = ("1", "2", "9", "10")
AXES_OF_ELLIPSOID = np.array([0.8, 0.55, 0.4])
FILE_FROM_OPENCV = np.array([1, -1, -1], np.float32)


def look_at_origin(eye: np.ndarray) -> np.ndarray:
    """c2w (4, 4), OpenCV axes, world z up."""
    forward = -eye / np.linalg.norm(eye)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    c2w[:3, 3] = eye
    return c2w


def ellipsoid(distance: float = 6.0, focal: float = 180.0, views: int = VIEWS, size=(WIDTH, HEIGHT)) -> dict:
    """Arguments of write_scene for exact maps of an ellipsoid about the origin."""
    K = np.array([[focal, 0, size[0] / 2 - 0.8], [0, focal * 1.02, size[1] / 2 - 0.2], [0, 0, 1]])
    azimuths = np.linspace(0, 2 * np.pi, views, endpoint=False) + 0.3
    c2w = np.stack([look_at_origin(distance * np.array([np.cos(a) * 0.9, np.sin(a) * 0.9, 0.44])) for a in azimuths])
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K).T
    masks, normals, depths = [], [], []
    for pose in c2w:
        # In coordinates in which the ellipsoid is the unit sphere.
        d = rays @ pose[:3, :3].T / AXES_OF_ELLIPSOID
        o = pose[:3, 3] / AXES_OF_ELLIPSOID
        a, b, c = (d * d).sum(-1), (d * o).sum(-1), o @ o - 1
        mask = b * b > a * c
        t = (-b - np.sqrt(np.maximum(b * b - a * c, 0))) / a
        n = (o + t[..., None] * d) / AXES_OF_ELLIPSOID
        n = n / np.linalg.norm(n, axis=-1, keepdims=True) @ pose[:3, :3]
        masks.append(mask)
        normals.append(np.where(mask[..., None], n, 0).astype(np.float32))
        depths.append(np.where(mask, t, np.nan))
    turn = Rotation.from_euler("xyz", [20, -30, 50], degrees=True).as_matrix()
    world_from_unit = np.eye(4)
    world_from_unit[:3, :3] = 55 * turn
    world_from_unit[:3, 3] = [5, -3, 11]
    return {
        "names": NAMES if views == VIEWS else tuple(f"{i:02d}" for i in range(views)),
        "K": np.stack([K] * views),
        "c2w": c2w,
        "world_from_unit": world_from_unit,
        "masks": np.stack(masks),
        "normals": np.stack(normals),
        "mesh": trimesh.creation.icosphere(subdivisions=1),
        "depths": np.stack(depths),
    }


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
    """A good scene to break."""
    return Path(shutil.copytree(template, tmp_path / "scene"))


NORMALS = "normal_camera_space_GT"


# ---- what is written is read ----------------------------------------------------------------------------------------


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


def test_files_have_their_conventions(root: Path, truth: dict) -> None:
    """Against the layout itself, not our reader: y up and z to the viewer; world_mat takes the world to pixels."""
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


def quantise(normals: np.ndarray, dtype: type) -> np.ndarray:
    return np.rint((normals + 1) / 2 * np.iinfo(dtype).max).astype(dtype)


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


def add_world_normals(root: Path, truth: dict, change: np.ndarray | None = None) -> None:
    turn = truth["world_from_unit"][:3, :3] / 55
    folder = root / "normal_world_space_GT"
    folder.mkdir()
    for name, c2w, normals in zip(NAMES, truth["c2w"], truth["normals"]):
        world = normals @ (turn @ c2w[:3, :3]).T
        write_exr(folder / f"{name}.exr", world if change is None else world @ change.T)


def test_world_space_normals_equal_camera_space_ones(root: Path, truth: dict) -> None:
    add_world_normals(root, truth)
    scene = read_scene(root, "normal_world_space_GT")
    np.testing.assert_allclose(scene.normals.astype(np.float32), truth["normals"], atol=1e-3)
    assert scene.warnings == ()


def test_which_folder_of_normals(root: Path) -> None:
    def chosen(**kwargs) -> str:
        return read_scene(root, **kwargs).normal_files[0].parent.name

    for name in ("normal_camera_space", "normal_camera_space_sdmunips"):
        shutil.copytree(root / NORMALS, root / name)
    assert chosen() == NORMALS
    assert chosen(normals_folder="normal_camera_space_sdmunips") == "normal_camera_space_sdmunips"
    shutil.rmtree(root / NORMALS)
    assert chosen() == "normal_camera_space"
    shutil.rmtree(root / "normal_camera_space")
    assert chosen() == "normal_camera_space_sdmunips"


def test_images_and_foreign_files(root: Path) -> None:
    (root / "mask" / ".DS_Store").write_text("")
    (root / "mask" / "notes.txt").write_text("")
    (root / "image").mkdir()
    for name in NAMES:
        (root / "image" / f"{name}.JPG").write_text("")
    images = read_scene(root).image_files
    assert images is not None
    assert [path.name for path in images] == ["1.JPG", "2.JPG", "9.JPG", "10.JPG"]


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_scale_factor_takes_maps_and_intrinsics_along(root: Path, truth: dict, factor: float) -> None:
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
    write_scene(root, **truth)  # the same files: replaced
    with pytest.raises(SceneError, match=r"cameras_sphere.npz: is of another scene"):
        write_scene(root, **{**truth, "c2w": None})
    (root / "mask" / "3.png").write_text("")
    with pytest.raises(SceneError, match=r"mask/3.png: is of another scene"):
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
    c2w = look_at_origin(rng.uniform(1.5, 20) * Rotation.random(rng=rng).as_matrix()[0])
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
    # The shift of up to 100 / .01 radii costs digits.
    np.testing.assert_allclose(got_K, K, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(got_c2w, c2w, atol=1e-7)
    np.testing.assert_array_equal(got_world, world_from_unit)


# ---- mistakes -------------------------------------------------------------------------------------------------------


def change_cameras(root: Path, **changes) -> None:
    """Replace entries by what a function makes of them; None removes one."""
    file = root / "cameras_sphere.npz"
    arrays = dict(np.load(file))
    for name, change in changes.items():
        array = change(arrays[name])
        arrays[name] = array
        if array is None:
            del arrays[name]
    np.savez(file, **arrays)


def change_all_cameras(root: Path, left: np.ndarray) -> None:
    change_cameras(root, **{f"world_mat_{i}": lambda world_mat: left @ world_mat for i in range(VIEWS)})


def change_pose(root: Path, truth: dict, view: int, c2w: np.ndarray) -> None:
    poses = truth["c2w"].copy()
    poses[view] = c2w
    write_cameras(root / "cameras_sphere.npz", truth["K"], poses, truth["world_from_unit"])


def change_normals(root: Path, change: Callable[[np.ndarray], np.ndarray], names=NAMES) -> None:
    for name in names:
        file = root / NORMALS / f"{name}.exr"
        write_exr(file, change(read_exr(file)))


def change_mask(root: Path, change: Callable[[np.ndarray], np.ndarray], name: str = "9") -> None:
    write_png(root / "mask" / f"{name}.png", change(read_mask(root / "mask" / f"{name}.png")))


def use_intrinsics(root: Path, text: str | None = None, **changes) -> None:
    (root / "cameras_sphere.npz").unlink()
    values = {"fl_x": 180.0, "fl_y": 183.6, "cx": 35.2, "cy": 29.8, "w": WIDTH, "h": HEIGHT, **changes}
    values = {name: value for name, value in values.items() if value is not None}
    (root / "intrinsics.json").write_text(json.dumps(values) if text is None else text)


def with_nan(normals: np.ndarray) -> np.ndarray:
    normals[HEIGHT // 2, WIDTH // 2 : WIDTH // 2 + 3] = np.nan
    return normals


def without_left_part(normals: np.ndarray) -> np.ndarray:
    normals[:, : WIDTH // 2] = 0
    return normals


def set_entry(index: tuple[int, int], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def pickled_cameras(root: Path) -> None:
    np.savez(root / "cameras_sphere.npz", world_mat_0=np.array([{}], dtype=object))


def two_kinds_of_one_view(root: Path) -> None:
    np.save(root / NORMALS / "2.npy", read_exr(root / NORMALS / "2.exr"))


def only_one_view(root: Path) -> None:
    for name in NAMES[1:]:
        (root / "mask" / f"{name}.png").unlink()
        (root / NORMALS / f"{name}.exr").unlink()


def several_folders(root: Path) -> None:
    shutil.move(root / NORMALS, root / "normal_camera_space_a")
    shutil.copytree(root / "normal_camera_space_a", root / "normal_world_space_b")


def world_space_without_poses(root: Path) -> None:
    shutil.move(root / NORMALS, root / "normal_world_space_GT")
    use_intrinsics(root)


def mirrored(world_mat: np.ndarray) -> np.ndarray:
    """The image flipped left to right."""
    return np.array([[-1, 0, WIDTH - 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ world_mat


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


# name of the case, how to break the scene, where the message begins (inside the scene), what it says
BROKEN: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("no folder", shutil.rmtree, "", "does not exist"),
    ("a file", lambda r: (shutil.rmtree(r), r.write_text("")), "", "is no folder"),
    ("no normals folder", lambda r: shutil.rmtree(r / NORMALS), "", "no folder of normals"),
    ("several folders", several_folders, "", "several.*normal_camera_space_a, normal_world_space_b.*--normals-folder"),
    ("no mask folder", lambda r: shutil.rmtree(r / "mask"), "mask", "no such folder"),
    ("empty mask folder", lambda r: empty_folder(r / "mask"), "mask", "holds no file"),
    ("empty normals folder", lambda r: empty_folder(r / NORMALS), NORMALS, "holds no file"),
    ("a mask is missing", lambda r: (r / "mask/2.png").unlink(), "mask/2.png", f"missing, .*{NORMALS}"),
    ("a normal map is missing", lambda r: (r / NORMALS / "10.exr").unlink(), f"{NORMALS}/10.exr", "missing, .*mask"),
    ("another name", lambda r: (r / "mask/2.png").rename(r / "mask/02.png"), "mask/2.png", "missing"),
    ("two kinds of one view", two_kinds_of_one_view, NORMALS, "both 2.exr and 2.npy"),
    ("one view", only_one_view, "", "only the view 1"),
    ("mask of another size", lambda r: change_mask(r, lambda m: m[:-3]), "mask/9.png", f"{WIDTH}x{HEIGHT - 3} .*1.png is {WIDTH}x{HEIGHT}"),
    ("normals of another size", lambda r: change_normals(r, lambda n: n[:, 2:], ["2"]), f"{NORMALS}/2.exr", f"is {WIDTH - 2}x{HEIGHT}"),
    ("empty mask", lambda r: change_mask(r, np.zeros_like), "mask/9.png", "empty"),
    ("full mask", lambda r: change_mask(r, np.ones_like), "mask/9.png", "all foreground"),
    ("broken mask", lambda r: (r / "mask/9.png").write_text("x"), "mask/9.png", "no image"),
    ("broken normals", lambda r: (r / NORMALS / "9.exr").write_text("x"), f"{NORMALS}/9.exr", "no EXR"),
    ("NaN normals", lambda r: change_normals(r, with_nan, ["2"]), f"{NORMALS}/2.exr", r"3 \(.*not finite"),
    ("many missing normals", lambda r: change_normals(r, without_left_part, ["2"]), f"{NORMALS}/2.exr", "no normal.*shrink the mask"),
    ("long normals", lambda r: change_normals(r, lambda n: 3 * n), f"{NORMALS}/1.exr", "median length .* is 3"),
    ("colours to 1", lambda r: change_normals(r, lambda n: (n + 1) / 2), f"{NORMALS}/1.exr", "colours from 0 to 1"),
    ("colours to 255", lambda r: change_normals(r, lambda n: (n + 1) * 127.5), f"{NORMALS}/1.exr", "colours from 0 to 255"),
    ("one view inside out", lambda r: change_normals(r, lambda n: -n, ["9"]), f"{NORMALS}/9.exr", "0% of the normals"),
    ("no cameras", lambda r: (r / "cameras_sphere.npz").unlink(), "", "neither cameras_sphere.npz nor intrinsics.json"),
    ("text for cameras", lambda r: (r / "cameras_sphere.npz").write_text("x"), "cameras_sphere.npz", "can't be read"),
    ("empty cameras", lambda r: (r / "cameras_sphere.npz").write_bytes(b""), "cameras_sphere.npz", "can't be read"),
    ("cut cameras", lambda r: (r / "cameras_sphere.npz").write_bytes((r / "cameras_sphere.npz").read_bytes()[:700]), "cameras_sphere.npz", "can't be read"),
    ("array for cameras", lambda r: np.save((r / "cameras_sphere.npz").open("wb"), np.eye(4)), "cameras_sphere.npz", "no archive"),
    ("pickled cameras", pickled_cameras, "cameras_sphere.npz", "can't be read"),
    ("a camera is missing", lambda r: change_cameras(r, world_mat_3=lambda _: None), "cameras_sphere.npz", "3 cameras .* 4 views"),
    ("too many cameras", lambda r: change_normals_away(r, "10"), "cameras_sphere.npz", "4 cameras .* 3 views"),
    ("no scale_mat", lambda r: change_cameras(r, scale_mat_2=lambda _: None), "cameras_sphere.npz", "no scale_mat_2"),
    ("3x4", lambda r: change_cameras(r, world_mat_1=lambda m: m[:3]), "cameras_sphere.npz", r"world_mat_1 .*\(3, 4\)"),
    ("complex", lambda r: change_cameras(r, world_mat_1=lambda m: m + 0j), "cameras_sphere.npz", "world_mat_1 is a complex128"),
    ("not finite", lambda r: change_cameras(r, world_mat_1=set_entry((0, 3), np.nan)), "cameras_sphere.npz", "world_mat_1 .*not finite"),
    ("singular", lambda r: change_cameras(r, world_mat_1=lambda m: m[[0, 0, 2, 3]]), "cameras_sphere.npz", "world_mat_1 is not invertible"),
    ("zero", lambda r: change_cameras(r, world_mat_1=np.zeros_like), "cameras_sphere.npz", "world_mat_1 is not invertible"),
    ("mirrored", lambda r: change_cameras(r, world_mat_1=mirrored), "cameras_sphere.npz", "world_mat_1 is a mirrored camera"),
    ("other scale_mat", lambda r: change_cameras(r, scale_mat_1=set_entry((0, 3), 6.0)), "cameras_sphere.npz", "scale_mat_1 differs"),
    ("stretched", lambda r: change_cameras(r, **{f"scale_mat_{i}": lambda m: m @ np.diag([1, 1, 1.1, 1]) for i in range(VIEWS)}), "cameras_sphere.npz", "no uniform scale"),
    ("mirrored scale_mat", lambda r: change_cameras(r, **{f"scale_mat_{i}": lambda m: m @ np.diag([1, 1, -1, 1]) for i in range(VIEWS)}), "cameras_sphere.npz", "scale_mat_0 is mirrored"),
    ("OpenGL axes", lambda r: change_pose(r, ellipsoid(), 1, ellipsoid()["c2w"][1] @ np.diag([1, -1, -1, 1])), "cameras_sphere.npz", "world_mat_1 looks away"),
    ("inside the sphere", lambda r: change_pose(r, ellipsoid(), 1, look_at_origin(np.array([0.5, 0, 0.3]))), "cameras_sphere.npz", "world_mat_1 .*inside the unit sphere"),
    ("of a large image", lambda r: change_all_cameras(r, np.diag([4.0, 4, 1, 1])), "cameras_sphere.npz", "world_mat_0.*principal point.*scale K"),
    ("K left out", lambda r: change_all_cameras(r, np.diag([1 / 180, 1 / 180, 1, 1])), "cameras_sphere.npz", "focal lengths of 1 and"),
    ("skew", lambda r: change_all_cameras(r, np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])), "cameras_sphere.npz", "skew"),
    ("text for intrinsics", lambda r: use_intrinsics(r, text="{"), "intrinsics.json", "as JSON"),
    ("list of intrinsics", lambda r: use_intrinsics(r, text="[1]"), "intrinsics.json", "no JSON object"),
    ("no fl_y", lambda r: use_intrinsics(r, fl_y=None), "intrinsics.json", "has no fl_y"),
    ("words", lambda r: use_intrinsics(r, cx="36"), "intrinsics.json", "no finite number for cx"),
    ("NaN in JSON", lambda r: use_intrinsics(r, cx=float("nan")), "intrinsics.json", "no finite number for cx"),
    ("negative focal length", lambda r: use_intrinsics(r, fl_x=-180.0), "intrinsics.json", "-180 px.*positive"),
    ("intrinsics of another size", lambda r: use_intrinsics(r, w=640), "intrinsics.json", f"640x{HEIGHT}.*{WIDTH}x{HEIGHT}"),
    ("world space without poses", world_space_without_poses, "normal_world_space_GT", "need poses"),
    ("depth is missing", lambda r: (r / "integration/depth/9.npy").unlink(), "integration/depth/9.npy", "missing"),
    ("depth too many", lambda r: np.save(r / "integration/depth/11.npy", np.ones((HEIGHT, WIDTH))), "integration/depth/11.npy", "no view"),
    ("depth of another size", lambda r: np.save(r / "integration/depth/9.npy", np.ones((8, 8))), "integration/depth/9.npy", "8x8"),
    ("depth of a volume", lambda r: np.save(r / "integration/depth/9.npy", np.ones((8, 8, 8))), "integration/depth/9.npy", r"\(8, 8, 8\)"),
    ("depth broken", lambda r: (r / "integration/depth/9.npy").write_text("x"), "integration/depth/9.npy", "can't be read"),
]  # fmt: skip


def change_normals_away(root: Path, name: str) -> None:
    """Take a view out of the maps, and not out of the cameras."""
    for file in root.rglob(f"{name}.*"):
        file.unlink()


@pytest.mark.parametrize(("break_it", "where", "phrase"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_mistakes_are_named_in_one_line(root: Path, break_it, where: str, phrase: str) -> None:
    break_it(root)
    with pytest.raises(SceneError) as caught:
        read_scene(root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{root / where if where else root}: ")
    assert re.search(phrase, message), message


def test_unknown_folder_of_normals(root: Path) -> None:
    with pytest.raises(SceneError, match=rf"no folder mask of normals.*\({NORMALS}\)"):
        read_scene(root, "mask")


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), 0.05])
def test_wrong_scale_factor(root: Path, factor: float) -> None:
    with pytest.raises(SceneError, match="scale_factor"):
        read_scene(root, scale_factor=factor)


# ---- warnings -------------------------------------------------------------------------------------------------------


def test_lengths_are_mended_with_a_warning(root: Path, truth: dict) -> None:
    change_normals(root, lambda n: np.where(np.arange(WIDTH)[:, None] < 30, 0.9 * n, n), ["2"])
    scene = read_scene(root)
    np.testing.assert_allclose(scene.normals.astype(np.float32), truth["normals"], atol=1e-3)
    off = truth["masks"][1][:, :30].sum()
    assert len(scene.warnings) == 1
    assert re.search(rf"2\.exr: {off} \(.*renormalised", scene.warnings[0])


def test_lengths_within_tolerance_make_no_warning(root: Path, truth: dict) -> None:
    change_normals(root, lambda n: 1.04 * n)
    scene = read_scene(root)
    assert scene.warnings == ()
    np.testing.assert_allclose(scene.normals.astype(np.float32), truth["normals"], atol=1e-3)


def test_missing_normals_leave_the_outline_and_are_filled_inside(root: Path, truth: dict) -> None:
    mask = truth["masks"][1]
    kept = cv2.erode(mask.astype(np.uint8), np.ones((2, 2), np.uint8)).astype(bool)
    rim, hole = mask & ~kept, np.zeros_like(mask)
    hole[29:31, 35:37] = True
    assert kept[hole].all()
    assert 0 < rim.sum() < 0.08 * mask.sum()
    change_normals(root, lambda n: np.where((rim | hole)[..., None], 0, n), ["2"])
    scene = read_scene(root)
    np.testing.assert_array_equal(scene.masks[1], kept)
    np.testing.assert_array_equal(scene.masks[[0, 2, 3]], truth["masks"][[0, 2, 3]])
    assert not scene.normals[1][rim].any()
    # A neighbour's normal, so nearly the true one.
    cosine = (scene.normals[1][hole].astype(np.float32) * truth["normals"][1][hole]).sum(-1)
    assert cosine.min() > 0.98
    assert len(scene.warnings) == 1
    assert re.search(
        rf"2\.exr: {rim.sum() + 4} of .* no normal: {rim.sum()} at the outline .* 4 inside", scene.warnings[0]
    )


def test_incomplete_images_are_left_out_with_a_warning(root: Path) -> None:
    (root / "image").mkdir()
    (root / "image" / "2.png").write_text("")
    scene = read_scene(root)
    assert scene.image_files is None
    assert len(scene.warnings) == 1
    assert "no image of 3 views (first 1)" in scene.warnings[0]


def test_an_object_outside_the_sphere_makes_a_warning(root: Path, truth: dict) -> None:
    aside = truth["c2w"][1].copy()
    aside[:3, 3] += 1.5 * aside[:3, 0]
    change_pose(root, truth, 1, aside)
    warnings = read_scene(root).warnings
    assert len(warnings) == 1
    assert "in 1 of 4 views (first world_mat_1) most of the mask is outside" in warnings[0]


def test_cameras_of_a_doubled_image_make_a_warning(root: Path) -> None:
    change_all_cameras(root, np.diag([2.0, 2, 1, 1]))
    warnings = read_scene(root).warnings
    assert len(warnings) == 1
    assert "principal point (70.4, 59.6) px is far from the middle of 72x60" in warnings[0]


def test_cameras_of_a_small_image_make_a_warning(root: Path) -> None:
    change_all_cameras(root, np.diag([0.4, 0.4, 1, 1]))
    warnings = read_scene(root).warnings
    assert len(warnings) == 2
    assert "in 4 of 4 views" in warnings[1]


def test_some_normals_facing_away_make_a_warning(root: Path) -> None:
    change_normals(root, lambda n: np.where(np.arange(WIDTH)[:, None] < 33, -n, n), ["2"])
    warnings = read_scene(root).warnings
    assert len(warnings) == 1
    assert re.search(r"in 1 views more than 10% .*worst 2\.exr: 4\d%", warnings[0])


# ---- axes -----------------------------------------------------------------------------------------------------------


def test_mends_are_all_orthogonal_axes() -> None:
    assert len({mend.axes.tobytes() for mend in mends()}) == 48
    np.testing.assert_array_equal(mends()[0].axes, np.eye(3))
    assert [mend.advice for mend in mends()[:4]] == ["", *(f"flip {axis}" for axis in ("z", "y", "x"))]


@pytest.mark.parametrize("mend", mends()[1:], ids=lambda mend: mend.advice)
def test_all_wrong_axes_are_told_apart(truth: dict, mend: Mend) -> None:
    opencv = np.diag(FILE_FROM_OPENCV)
    change = opencv @ mend.axes.T @ opencv
    evidence = [
        weigh_axes(normals @ change.T, mask, K, opencv)
        for normals, mask, K in zip(truth["normals"], truth["masks"], truth["K"])
    ]
    with pytest.raises(SceneError, match=f": {mend.advice} in all files"):
        judge_axes(Path("normals"), [Path(name) for name in NAMES], evidence)


@pytest.mark.parametrize("mend", [*mends()[1:9], mends()[-1]], ids=lambda mend: mend.advice)
def test_wrong_axes_are_found_and_mended(root: Path, truth: dict, mend: Mend) -> None:
    wrong = mend.axes.T
    change_normals(root, lambda n: n @ wrong.T)
    with pytest.raises(SceneError) as caught:
        read_scene(root)
    message = str(caught.value)
    assert "\n" not in message
    assert f": {mend.advice} in all files" in message
    assert message.startswith(str(root / NORMALS))
    # The advice, followed with the bare words: channels first, then signs.
    order = re.search(r"in the order (\w), (\w), (\w)", message)
    channels = ["RGB".index(letter) for letter in order.groups()] if order else [0, 1, 2]
    flipped = re.search(r"flip ([xyz](?: and [xyz])*) in all", message)
    signs = np.array([-1 if flipped and axis in flipped[1].split(" and ") else 1 for axis in "xyz"])
    change_normals(root, lambda n: n[..., channels] * signs)
    np.testing.assert_allclose(read_scene(root).normals.astype(np.float32), truth["normals"], atol=1e-3)


@pytest.mark.parametrize("index", [1, 9, 20, 47])
def test_wrong_world_axes_are_found(root: Path, truth: dict, index: int) -> None:
    mend = mends()[index]
    add_world_normals(root, truth, mend.axes.T)
    with pytest.raises(SceneError, match=f"not plain world axes .*: {mend.advice} in all files"):
        read_scene(root, "normal_world_space_GT")


def noisy(sigma_deg: float) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)

    def change(normals: np.ndarray) -> np.ndarray:
        turn = Rotation.from_rotvec(np.deg2rad(sigma_deg) * rng.standard_normal((WIDTH * HEIGHT, 3)) / np.sqrt(3))
        return turn.apply(normals.reshape(-1, 3)).reshape(normals.shape).astype(np.float32)

    return change


def test_noise_is_no_wrong_axes(root: Path) -> None:
    change_normals(root, noisy(25))
    read_scene(root)


def test_a_flip_is_found_under_noise(root: Path) -> None:
    noise = noisy(10)
    change_normals(root, lambda n: noise(n) * np.array([1, -1, 1], np.float32))
    with pytest.raises(SceneError, match="flip y in all files"):
        read_scene(root)


def test_an_object_cut_by_masks_that_show_only_its_upper_half(root: Path, truth: dict) -> None:
    """A straight lower edge, where normals don't point outwards: the outline alone is no proof."""
    for i, name in enumerate(NAMES):
        change_mask(root, lambda mask: mask & (np.arange(HEIGHT)[:, None] < HEIGHT // 2), name)
        assert truth["masks"][i][: HEIGHT // 2].any()
    assert read_scene(root).warnings == ()


def test_an_object_that_fills_the_frame(tmp_path: Path) -> None:
    """All but a corner: no outline to speak of, but facing alone finds a flipped z."""
    maps = ellipsoid(focal=900.0)
    maps["masks"][:, :6, :6] = False
    maps["normals"][:, :6, :6] = 0
    maps["mesh"] = maps["depths"] = None
    write_scene(tmp_path, **maps)
    (warning,) = read_scene(tmp_path).warnings
    assert "white along the frame's edge" in warning
    change_normals(tmp_path, lambda n: n * np.array([1, 1, -1], np.float32))
    with pytest.raises(SceneError, match="flip z in all files"):
        read_scene(tmp_path)
