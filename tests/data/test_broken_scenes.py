# SPDX-License-Identifier: Apache-2.0
"""Broken scenes beyond those of tests/test_scene.py: each ends in one line and exit code 1, or in a named warning.

A kind is a function that breaks a copy of a good scene; its decorator says where the line begins and what it contains.
Both tables, this one and test_scene's, also go through the command line.
"""

from __future__ import annotations

import io
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
import torch
import yaml
from PIL import Image
from test_scene import (
    BROKEN,
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
    ellipsoid,
    quantise,
    set_entry,
    use_intrinsics,
)

from pmni_nerfstudio import cli
from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.camera_files import write_cameras
from pmni_nerfstudio.data.depths import read_depths
from pmni_nerfstudio.data.images import read_exr, read_mask, write_png
from pmni_nerfstudio.data.scene import read_scene, write_scene
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.training.trained_run import load_run, read_config

Break = Callable[[Path], object]
BIN = Path(sys.executable).parent
CAMERAS, DEPTH, MASK, EXR = "cameras_sphere.npz", "integration/depth/9.npy", "mask/9.png", f"{NORMALS}/9.exr"


@dataclass(frozen=True)
class Kind:
    """Of mistake."""

    name: str
    break_it: Break
    where: str
    """In the scene; the line begins with it."""
    words: str
    """A pattern of what the line says."""


ERRORS: list[Kind] = []
WARNINGS: list[Kind] = []


def kind(where: str, words: str, table: list[Kind]) -> Callable[[Break], Break]:
    def add(break_it: Break) -> Break:
        table.append(Kind(break_it.__name__, break_it, where, words))
        return break_it

    return add


def error(where: str, words: str) -> Callable[[Break], Break]:
    return kind(where, words, ERRORS)


def warning(where: str, words: str) -> Callable[[Break], Break]:
    return kind(where, words, WARNINGS)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "scene"
    write_scene(root, **ellipsoid())
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A good scene to break."""
    return Path(shutil.copytree(template, tmp_path / "scene"))


class Trap:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def sprung(root: Path) -> Path:
    """What a trap in a scene makes."""
    return root.parent / "sprung"


def cut(file: Path, share: float = 0.6) -> None:
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def replace(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, 1))


def png_of_size(width: int, height: int) -> bytes:
    """A sound PNG but for its size, which its data doesn't have."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def npy_of_shape(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """A header and no data."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue() + bytes(64)


def as_npy(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """View 9's normals as .npy of what a function makes of them."""
    array = change(read_exr(root / EXR))
    (root / EXR).unlink()
    np.save(root / NORMALS / "9.npy", array, allow_pickle=False)
    return root / NORMALS / "9.npy"


def as_png(root: Path) -> Path:
    array = read_exr(root / EXR)
    (root / EXR).unlink()
    write_png(root / NORMALS / "9.png", quantise(array, np.uint8))
    return root / NORMALS / "9.png"


def special(file: Path, make: Callable[[Path], object]) -> None:
    """Something else in the place of a file."""
    file.unlink()
    make(file)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


# ---- masks ----------------------------------------------------------------------------------------------------------


@error(MASK, "no image.*export it again")
def mask_without_a_byte(root: Path) -> None:
    (root / MASK).write_bytes(b"")


@error(MASK, "no image.*cut short")
def mask_cut_short(root: Path) -> None:
    cut(root / MASK)


@error(MASK, "no image")
def mask_with_one_wrong_bit(root: Path) -> None:
    data = bytearray((root / MASK).read_bytes())
    data[len(data) // 2] ^= 1
    (root / MASK).write_bytes(data)


@error(MASK, "no regular file")
def mask_that_is_a_folder(root: Path) -> None:
    special(root / MASK, Path.mkdir)


@error(MASK, "no regular file")
def mask_that_links_to_itself(root: Path) -> None:
    special(root / MASK, link_to_itself)


@error(MASK, "no regular file")
def mask_that_links_to_nothing(root: Path) -> None:
    special(root / MASK, lambda path: path.symlink_to("gone"))


@error(MASK, "no regular file")
def mask_that_is_a_pipe(root: Path) -> None:
    special(root / MASK, os.mkfifo)


@error("mask", "no such folder")
def masks_in_a_link_to_itself(root: Path) -> None:
    shutil.rmtree(root / "mask")
    link_to_itself(root / "mask")


@error("mask", "no such folder")
def masks_folder_that_is_a_file(root: Path) -> None:
    shutil.rmtree(root / "mask")
    (root / "mask").write_text("")


@error("mask/9.jpg", "cut short")
def jpeg_mask_cut_short(root: Path) -> None:
    Image.fromarray(read_mask(root / MASK)).convert("L").save(root / "mask/9.jpg")
    (root / MASK).unlink()
    cut(root / "mask/9.jpg")


@error(MASK, "no image that can be read")
def mask_of_another_format(root: Path) -> None:
    (root / MASK).write_bytes(cv2.imencode(".tiff", np.zeros((HEIGHT, WIDTH), np.uint8))[1].tobytes())


@error(MASK, "says that it is 13000x13000 pixels.*134,217,728 at most")
def mask_with_a_large_header(root: Path) -> None:
    (root / MASK).write_bytes(png_of_size(13000, 13000))


@error(MASK, "says that it is too large")
def mask_with_an_enormous_header(root: Path) -> None:
    (root / MASK).write_bytes(png_of_size(2**31 - 1, 2**31 - 1))


@error(f"{NORMALS}/1.exr", "the mask is inverted: paint the object white")
def masks_inverted(root: Path) -> None:
    for name in NAMES:
        change_mask(root, np.logical_not, name)


@error(MASK, "empty.*take the view out")
def object_out_of_the_frame(root: Path) -> None:
    change_mask(root, lambda mask: np.roll(mask, WIDTH, axis=1) & False)


@error("mask/1.png", "missing.*3 more")
def names_that_do_not_match(root: Path) -> None:
    for name in NAMES:
        (root / f"mask/{name}.png").rename(root / f"mask/view_{name}.png")


@error("", "no folder of normals")
def scene_one_folder_further_down(root: Path) -> None:
    inner = root.parent / "inner"
    root.rename(inner)
    root.mkdir()
    inner.rename(root / "scene")


# ---- normals --------------------------------------------------------------------------------------------------------


@error("", "no folder of normals")
def normals_folder_that_is_a_file(root: Path) -> None:
    shutil.rmtree(root / NORMALS)
    (root / NORMALS).write_text("")


@error(EXR, "no EXR file")
def exr_without_a_byte(root: Path) -> None:
    (root / EXR).write_bytes(b"")


@error(EXR, "broken EXR file, cut short or damaged")
def exr_cut_short(root: Path) -> None:
    cut(root / EXR)


@error(EXR, r"array of shape \(60, 72\)")
def exr_of_one_channel(root: Path) -> None:
    OpenEXR.File({}, {"Y": np.ones((HEIGHT, WIDTH), np.float32)}).write(str(root / EXR))


@error(EXR, "channels N, n")
def exr_of_other_channels(root: Path) -> None:
    OpenEXR.File({}, {name: np.ones((HEIGHT, WIDTH), np.float32) for name in "nN"}).write(str(root / EXR))


@error(EXR, "cropped")
def exr_that_is_cropped(root: Path) -> None:
    replace(root / EXR, box("displayWindow", WIDTH, HEIGHT), box("displayWindow", WIDTH + 8, HEIGHT))


@error(EXR, "says that it is 72x4000000 pixels")
def exr_with_an_enormous_header(root: Path) -> None:
    for name in ("displayWindow", "dataWindow"):
        replace(root / EXR, box(name, WIDTH, HEIGHT), box(name, WIDTH, 4_000_000))


def box(name: str, width: int, height: int) -> bytes:
    """An EXR header's entry."""
    return name.encode() + b"\0box2i\0" + struct.pack("<iiiii", 16, 0, 0, width - 1, height - 1)


@error(f"{NORMALS}/9.png", "grey image")
def png_normals_that_are_grey(root: Path) -> None:
    write_png(as_png(root), np.full((HEIGHT, WIDTH), 200, np.uint8))


@error(f"{NORMALS}/9.png", "cut short")
def png_normals_cut_short(root: Path) -> None:
    cut(as_png(root))


@error(f"{NORMALS}/9.png", "no normal")
def png_normals_that_are_black(root: Path) -> None:
    write_png(as_png(root), np.zeros((HEIGHT, WIDTH, 3), np.uint8))


@error(f"{NORMALS}/9.npy", "can't be read.*numpy.save")
def npy_normals_without_a_byte(root: Path) -> None:
    as_npy(root, np.copy).write_bytes(b"")


@error(f"{NORMALS}/9.npy", "can't be read.*numpy.save")
def npy_normals_cut_short(root: Path) -> None:
    cut(as_npy(root, np.copy))


@error(f"{NORMALS}/9.npy", "no array of floats")
def npy_normals_of_integers(root: Path) -> None:
    as_npy(root, lambda n: quantise(n, np.uint8))


@error(f"{NORMALS}/9.npy", r"shape \(60, 72, 2\).*height, width, 3")
def npy_normals_of_two_channels(root: Path) -> None:
    as_npy(root, lambda n: n[..., :2])


@error(f"{NORMALS}/9.npy", r"shape \(3, 60, 72\).*height, width, 3")
def npy_normals_with_channels_first(root: Path) -> None:
    as_npy(root, lambda n: n.transpose(2, 0, 1))


@error(f"{NORMALS}/9.npy", "is 60x72 pixels")
def npy_normals_with_axes_swapped(root: Path) -> None:
    as_npy(root, lambda n: n.transpose(1, 0, 2))


@error(f"{NORMALS}/9.npy", "can't be read")
def npy_normals_that_are_a_pickle(root: Path) -> None:
    np.save(as_npy(root, np.copy), np.array([Trap(sprung(root))], dtype=object), allow_pickle=True)


@error(f"{NORMALS}/9.npy", "can't be read")
def npy_normals_with_an_enormous_header(root: Path) -> None:
    as_npy(root, np.copy).write_bytes(npy_of_shape((1 << 30, 1 << 30, 3)))


@error(EXR, "all|not finite")
def normals_that_are_infinite(root: Path) -> None:
    change_normals(root, lambda n: np.where(n > 0.3, np.inf, n).astype(np.float32), ["9"])


@error(EXR, "not finite")
def normals_too_large_to_square(root: Path) -> None:
    change_normals(root, lambda n: n * np.float32(1e30), ["9"])


@error(EXR, r"\(100.0%\) of the mask's pixels have no normal")
def normals_that_are_zero(root: Path) -> None:
    change_normals(root, np.zeros_like, ["9"])


@error(f"{NORMALS}/1.exr", "median length .* is 0.25")
def normals_that_are_short(root: Path) -> None:
    change_normals(root, lambda n: n / 4)


@error(NORMALS, "read the channels in the order B, G, R")
def channels_swapped(root: Path) -> None:
    change_normals(root, lambda n: n[..., ::-1])


@error(NORMALS, "flip y and z in all files")
def normals_with_y_down_and_z_forward(root: Path) -> None:
    change_normals(root, lambda n: n * np.array([1, -1, -1], np.float32))


@error(NORMALS, "normals in world space, it seems: .*rename the folder to normal_world_space_NAME")
def world_normals_called_camera_normals(root: Path) -> None:
    add_world_normals(root, ellipsoid())
    shutil.rmtree(root / NORMALS)
    (root / "normal_world_space_GT").rename(root / NORMALS)


@error("normal_world_space_GT", "normals in camera space, it seems: .*rename the folder to normal_camera_space_NAME")
def camera_normals_called_world_normals(root: Path) -> None:
    (root / NORMALS).rename(root / "normal_world_space_GT")


# ---- cameras --------------------------------------------------------------------------------------------------------


@error(CAMERAS, "no regular file")
def cameras_that_are_a_folder(root: Path) -> None:
    special(root / CAMERAS, Path.mkdir)


@error(CAMERAS, "no regular file")
def cameras_that_link_to_themselves(root: Path) -> None:
    special(root / CAMERAS, link_to_itself)


@error(CAMERAS, "can't be read.*pickle")
def cameras_with_a_trap(root: Path) -> None:
    change_cameras(root, world_mat_1=lambda _: np.array([[Trap(sprung(root))] * 4] * 4, dtype=object))


@error(CAMERAS, "world_mat_1.npy has 16,000,128 bytes")
def cameras_that_unpack_to_much(root: Path) -> None:
    arrays = dict(np.load(root / CAMERAS)) | {"world_mat_1": np.zeros(2_000_000)}
    np.savez_compressed(root / CAMERAS, **arrays)


@error(CAMERAS, "can't be read")
def cameras_with_an_enormous_header(root: Path) -> None:
    with zipfile.ZipFile(root / CAMERAS, "w") as archive:
        archive.writestr("world_mat_0.npy", npy_of_shape((1 << 28, 1 << 28), "<f8"))


@error(CAMERAS, "can't be read")
def cameras_with_a_wrong_checksum(root: Path) -> None:
    replace(
        root / CAMERAS,
        dict(np.load(root / CAMERAS))["world_mat_1"][0, 0].tobytes(),
        bytes(8),
    )


@error(CAMERAS, "0 cameras .* for 4 views")
def cameras_of_other_names(root: Path) -> None:
    np.savez(root / CAMERAS, **{f"pose_{i}": np.eye(4) for i in range(VIEWS)})


@error(CAMERAS, "world_mat_1 is a <U")
def cameras_of_words(root: Path) -> None:
    change_cameras(root, world_mat_1=lambda m: m.astype(str))


@error(CAMERAS, "scale_mat_2 .*not finite")
def cameras_that_are_infinite(root: Path) -> None:
    change_cameras(root, scale_mat_2=set_entry((1, 1), np.inf))


@error(CAMERAS, "world_mat_1 holds values up to 1.*e.300")
def cameras_too_large_to_multiply(root: Path) -> None:
    change_cameras(root, world_mat_1=lambda m: m / np.abs(m).max() * 1e300)


@error(CAMERAS, "scale_mat_0 is no uniform scale")
def scale_mat_of_zeros(root: Path) -> None:
    change_cameras(root, **{f"scale_mat_{i}": np.zeros_like for i in range(VIEWS)})


@error(CAMERAS, "world_mat_0 is a mirrored camera")
def one_focal_length_negative(root: Path) -> None:
    K = np.eye(4)
    K[:3, :3] = ellipsoid()["K"][0]
    change_all_cameras(root, K @ np.diag([-1, 1, 1, 1]) @ np.linalg.inv(K))


@warning(CAMERAS, "all cameras stand within .* of one place.*wrong way round")
def cameras_that_are_inverted_poses(root: Path) -> None:
    """Camera to world in the place of world to camera."""
    truth = ellipsoid()
    write_cameras(root / CAMERAS, truth["K"], np.linalg.inv(truth["c2w"]), truth["world_from_unit"])


def scale_units(root: Path, factor: float) -> None:
    scaled = np.diag([factor, factor, factor, 1])
    change_cameras(root, **{f"scale_mat_{i}": lambda m: m @ scaled for i in range(VIEWS)})


@error(CAMERAS, "inside the unit sphere.*let scale_mat fit the object")
def scale_mat_a_thousand_times_too_large(root: Path) -> None:
    scale_units(root, 1000)


@error(CAMERAS, "sphere's image is .* times smaller than the masks.*other units")
def scale_mat_a_thousand_times_too_small(root: Path) -> None:
    scale_units(root, 1e-3)


@error(CAMERAS, "inside the unit sphere|looks away")
def cameras_in_metres_and_scale_mat_in_millimetres(root: Path) -> None:
    metres = np.diag([1000.0, 1000, 1000, 1])  # a world a thousand times smaller seen by the same cameras
    change_cameras(root, **{f"world_mat_{i}": lambda m: m @ metres for i in range(VIEWS)})


# ---- intrinsics -----------------------------------------------------------------------------------------------------


def intrinsics(words: str, text: str | None = None, **changes: object) -> Callable[[Break], Break]:
    """A kind that its arguments make: `use_intrinsics` does."""

    def add(named: Break) -> Break:
        def break_it(root: Path) -> None:
            named(root)
            use_intrinsics(root, text, **changes)

        ERRORS.append(Kind(named.__name__, break_it, "intrinsics.json", words))
        return named

    return add


@intrinsics("can't be read as JSON", text="")
def intrinsics_without_a_byte(root: Path) -> None: ...


@intrinsics("can't be read as JSON.*depth", text="[" * 200_000)
def intrinsics_nested_without_end(root: Path) -> None: ...


@intrinsics("no finite number for fl_x", fl_x=float("inf"))
def intrinsics_that_are_infinite(root: Path) -> None: ...


@intrinsics("no finite number for fl_y", fl_y=10**400)
def intrinsics_beyond_all_floats(root: Path) -> None: ...


@intrinsics("focal length of 0 px", fl_x=0)
def intrinsics_with_focal_length_zero(root: Path) -> None: ...


@intrinsics("no finite number for w", w=True)
def intrinsics_of_truth_values(root: Path) -> None: ...


@intrinsics("72.5x60 pixels.*whole", w=72.5)
def intrinsics_of_half_a_pixel(root: Path) -> None: ...


@intrinsics("no finite number for fl_x", fl_x=[180])
def intrinsics_of_lists(root: Path) -> None: ...


@error("intrinsics.json", "can't be read as JSON")
def intrinsics_in_no_encoding(root: Path) -> None:
    use_intrinsics(root)
    (root / "intrinsics.json").write_bytes(b"\xff\xfe{}")


@error("intrinsics.json", "no regular file")
def intrinsics_that_are_a_folder(root: Path) -> None:
    use_intrinsics(root)
    special(root / "intrinsics.json", Path.mkdir)


# ---- depths ---------------------------------------------------------------------------------------------------------


@error(DEPTH, "can't be read")
def depth_without_a_byte(root: Path) -> None:
    (root / DEPTH).write_bytes(b"")


@error(DEPTH, "can't be read")
def depth_cut_short(root: Path) -> None:
    cut(root / DEPTH)


@error(DEPTH, "no array of floats")
def depth_of_integers(root: Path) -> None:
    np.save(root / DEPTH, np.ones((HEIGHT, WIDTH), np.uint16))


@error(DEPTH, "can't be read")
def depth_that_is_a_pickle(root: Path) -> None:
    np.save(root / DEPTH, np.array([Trap(sprung(root))], dtype=object), allow_pickle=True)


@error(DEPTH, "can't be read")
def depth_with_an_enormous_header(root: Path) -> None:
    (root / DEPTH).write_bytes(npy_of_shape((1 << 40, 1 << 40)))


@error("integration/depth", "holds no file")
def depth_folder_that_is_empty(root: Path) -> None:
    shutil.rmtree(root / "integration/depth")
    (root / "integration/depth").mkdir()


# ---- what training can go on with -----------------------------------------------------------------------------------


@warning(f"{NORMALS}/9.exr", "renormalised")
def normals_ten_percent_short(root: Path) -> None:
    change_normals(root, lambda n: n * np.float32(0.9), ["9"])


@warning(f"{NORMALS}/9.exr", "at the outline left the mask")
def mask_a_pixel_too_wide(root: Path) -> None:
    change_mask(root, lambda m: m | np.roll(m, 1, axis=1))


@warning(f"{NORMALS}/9.exr", "same normals as 1.exr")
def view_twice_without_poses(root: Path) -> None:
    use_intrinsics(root)
    for folder, suffix in (("mask", ".png"), (NORMALS, ".exr"), ("integration/depth", ".npy")):
        for name, other in (("2", "10"), ("1", "9")):
            shutil.copy(root / folder / f"{name}{suffix}", root / folder / f"{other}{suffix}")


@warning(CAMERAS, "world_mat_1 and world_mat_3 are the same camera")
def camera_twice(root: Path) -> None:
    change_cameras(root, world_mat_3=lambda _: dict(np.load(root / CAMERAS))["world_mat_1"])


@warning("mask/1.png", "reaches the frame's edge.*in 4 of 4 views")
def object_cut_by_the_frame(root: Path) -> None:
    left = WIDTH // 2 - 3
    for name in NAMES:
        change_mask(root, lambda m: m[:, left:], name)
        np.save(root / f"integration/depth/{name}.npy", np.load(root / f"integration/depth/{name}.npy")[:, left:])
    change_normals(root, lambda n: n[:, left:])
    shift = np.eye(4)
    shift[0, 2] = -left
    change_all_cameras(root, shift)


@warning("mask", "white along the frame's edge: are they inverted")
def masks_inverted_where_normals_are_everywhere(root: Path) -> None:
    change_normals(root, lambda n: np.where(n.any(axis=2, keepdims=True), n, np.array([0, 0, 1], np.float32)))
    for name in NAMES:
        change_mask(root, np.logical_not, name)


@warning(CAMERAS, r"fills [\d.]+% of the unit sphere.*other units")
def object_small_in_its_sphere(root: Path) -> None:
    scale_units(root, 5.5)


@warning(CAMERAS, "most of the mask is outside the image of the unit sphere")
def scale_mat_three_times_too_small(root: Path) -> None:
    scale_units(root, 1 / 3)


# ---- each of them ---------------------------------------------------------------------------------------------------


def test_there_are_enough_kinds() -> None:
    """Of different names, and none that tests/test_scene.py has."""
    names = [row[0] for row in BROKEN] + [row.name.replace("_", " ") for row in ERRORS + WARNINGS]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize("row", ERRORS, ids=[row.name for row in ERRORS])
def test_a_broken_scene_is_named_in_one_line(row: Kind, root: Path) -> None:
    row.break_it(root)
    with pytest.raises(SceneError) as caught:
        read_scene(root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(root / row.where))
    assert re.search(row.words, message), message
    assert not sprung(root).exists(), "a pickle was opened"


@pytest.mark.parametrize("row", WARNINGS, ids=[row.name for row in WARNINGS])
def test_what_can_be_trained_on_is_read_with_a_warning(row: Kind, root: Path) -> None:
    assert read_scene(root).warnings == ()
    row.break_it(root)
    warnings = read_scene(root).warnings
    assert any(line.startswith(f"{root / row.where}: ") and re.search(row.words, line) for line in warnings), warnings
    assert not any("\n" in line for line in warnings)


def said(args: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What `pmni` says before it ends with 1."""
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    assert end.value.code == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "EXR_ERR" not in line]
    # OpenEXR speaks for itself of files that are damaged; ours is the last line.
    assert [line for line in lines if not line.startswith("Warning: Exception raised reading")] == lines[-1:]
    assert lines[-1].startswith("error: ")
    return lines[-1].removeprefix("error: ")


TABLES = [Kind(row[0], row[1], row[2], row[3]) for row in BROKEN] + ERRORS


@pytest.mark.parametrize("row", TABLES, ids=[row.name for row in TABLES])
def test_a_command_ends_with_that_line(row: Kind, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    row.break_it(root)
    line = said(["register", str(root), "--output-dir", str(tmp_path / "out")], capfd)
    assert line.startswith(str(root / row.where))
    assert re.search(row.words, line), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mask_cut_short", "normals_that_are_zero", "cameras_with_a_trap"])
@pytest.mark.parametrize("command", ["integrate", "eval"])
def test_other_commands_end_with_the_same(command: str, name: str, root: Path, capfd: pytest.CaptureFixture) -> None:
    row = next(row for row in ERRORS if row.name == name)
    row.break_it(root)
    shutil.rmtree(root / "integration")
    mesh = root / "mesh_Gt.ply"
    more = ["--mesh", str(mesh), "--data", str(root)] if command == "eval" else [str(root)]
    assert re.search(row.words, said([command, *more], capfd))
    assert not (root / "integration/depth").exists()


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        (-np.ones((HEIGHT, WIDTH), np.float32), "negative depths"),
        (np.full((HEIGHT, WIDTH), np.nan, np.float32), "no depth on the mask"),
        (np.zeros((HEIGHT, WIDTH), np.float32), "no depth on the mask"),
    ],
    ids=["negative", "nan", "zero"],
)
def test_depths_of_no_use(depth: np.ndarray, words: str, root: Path) -> None:
    """Found when a loss asks for them: they are read no earlier."""
    np.save(root / DEPTH, depth)
    with pytest.raises(SceneError, match=f"9.npy: .*{words}"):
        read_depths(read_scene(root))


def test_two_views_are_enough_to_read(root: Path) -> None:
    for name in NAMES[2:]:
        for file in root.rglob(f"{name}.*"):
            file.unlink()
    change_cameras(root, **{f"{kind}_mat_{i}": lambda _: None for kind in ("world", "scale") for i in (2, 3)})
    assert read_scene(root).num_views == 2


# ---- where results go -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["register", "eval"])
@pytest.mark.parametrize("place", ["a file", "below a file", "where nothing can be made"])
def test_places_that_cannot_be_written_to(
    command: str, place: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("kept")
    out = {"a file": tmp_path / "file", "below a file": tmp_path / "file/out"}.get(place, Path("/proc/pmni"))
    given = [str(root)] if command == "register" else ["--mesh", str(root / "mesh_Gt.ply"), "--data", str(root)]
    line = said([command, *given, "--output-dir", str(out)], capfd)
    assert re.match(f"{out}: can't be made .*give another --output-dir", line)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")
@pytest.mark.parametrize("what", ["mask/9.png", "mask", NORMALS, CAMERAS])
def test_what_may_not_be_read(what: str, root: Path) -> None:
    mode = (root / what).stat().st_mode
    (root / what).chmod(0)
    try:
        with pytest.raises(SceneError, match="[Pp]ermission"):
            read_scene(root)
    finally:
        (root / what).chmod(mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")
def test_a_read_only_folder_for_results(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    assert "can't be written to" in said(["register", str(root), "--output-dir", str(tmp_path / "out")], capfd)


def test_a_refused_write_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("kept")
    with pytest.raises(PmniError, match=r"file.txt: can't be written \(Read-only file system\): .*space"):
        with atomic_path(tmp_path / "file.txt") as temporary:
            temporary.write_text("half")
            raise OSError(30, os.strerror(30))
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "kept"


def on_full_disk(command: list[str], size: int) -> subprocess.CompletedProcess[str]:
    """A run whose files can't grow beyond a size in bytes, as on a disk that is full: writing then fails likewise."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "COLUMNS": "400", "PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_integrate_on_a_full_disk(root: Path) -> None:
    before = (root / DEPTH).read_bytes()
    end = on_full_disk([str(BIN / "pmni"), "integrate", str(root), "--overwrite"], 4096)
    assert end.returncode == 1, end.stderr
    assert "Traceback" not in end.stderr
    assert re.search(rf"error: {root}/integration: can't be written .*space\n$", end.stderr)
    assert (root / DEPTH).read_bytes() == before, "the old depth maps are gone"


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 4000])
def test_register_on_a_full_disk(size: int, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    end = on_full_disk([str(BIN / "pmni"), "register", str(root), "--output-dir", str(out)], size)
    assert end.returncode == 1, end.stderr
    assert "Traceback" not in end.stderr
    assert re.search(rf"error: {out}/[\w.]+: can't be written .*space\n$", end.stderr), end.stderr
    assert not [path for path in out.rglob("*") if path.name.startswith(".")], "a part of a file is left"


# ---- results that are measured, and runs that are loaded ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("m.ply", b"", "can't be read as a mesh"),
        ("m.ply", b"ply\nformat ascii 1.0\nelement vertex 99999999999\n", "can't be read as a mesh|no faces"),
        ("m.stl", bytes(80) + struct.pack("<I", 4_000_000_000), "can't be read as a mesh|no faces"),
        ("m.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "faces of vertices that are not there|can't be read"),
        ("m.obj", b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
        ("m.obj", b"v 0 0 0\nv 1e300 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
        ("m.pkl", b"", "give one of .ply"),
        ("gone.ply", None, "no such mesh"),
    ],
)
def test_meshes_of_no_use(
    name: str, data: bytes | None, words: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    line = said(["eval", "--mesh", str(tmp_path / name), "--data", str(root)], capfd)
    assert line.startswith(f"{tmp_path / name}: ")
    assert re.search(words, line), line


def broken_truth(**changes: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        truth = ellipsoid()
        arrays = {"c2w": truth["c2w"], "K": truth["K"], "scale_mat": np.eye(4), "depth": truth["depths"], **changes}
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})

    return write


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b""), "can't be read"),
        (lambda path: path.write_bytes(npy_of_shape((1 << 40,))), "can't be read"),
        (
            lambda path: np.savez(path, c2w=np.array([Trap(path.parent.parent / "sprung")], dtype=object)),
            "can't be read",
        ),
        (broken_truth(K=None), "no numbers K"),
        (broken_truth(c2w=np.eye(4)), "shapes don't fit"),
        (broken_truth(c2w=ellipsoid()["c2w"] * np.nan), "not finite"),
        (broken_truth(scale_mat=np.zeros((4, 4))), "scale_mat is mirrored or singular"),
        (broken_truth(K=np.full((3, 3), "x")), "no numbers K"),
    ],
    ids=["empty", "npy", "trap", "no K", "one pose", "nan", "singular", "words"],
)
def test_truths_of_no_use(write: Callable[[Path], None], words: str, root: Path, capfd: pytest.CaptureFixture) -> None:
    (root / "truth").mkdir()
    shutil.copy(root / "mesh_Gt.ply", root / "truth")
    write(root / "truth/truth.npz")
    line = said(["eval", "--mesh", str(root / "mesh_Gt.ply"), "--data", str(root)], capfd)
    assert line.startswith(f"{root / 'truth/truth.npz'}: ")
    assert re.search(words, line), line
    assert not sprung(root).exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npy_of_shape((1 << 40, 4, 4)), "can't be read"),
        (npy_of_shape((4, 4, 4)), "can't be read"),
        (b"", "can't be read"),
    ],
    ids=["enormous", "cut", "empty"],
)
def test_poses_of_no_use(data: bytes, words: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "poses.npy").write_bytes(data)
    args = ["--mesh", str(root / "mesh_Gt.ply"), "--poses", str(tmp_path / "poses.npy"), "--data", str(root)]
    line = said(["eval", *args], capfd)
    assert line.startswith(f"{tmp_path / 'poses.npy'}: ")
    assert re.search(words, line), line


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {trap}']",
        "!!python/object/apply:builtins.open ['{trap}', 'w']",
        "!!python/object/apply:pathlib.Path.touch ['{trap}']",
        "!!python/object/new:subprocess.Popen [['touch', '{trap}']]",
        "!!python/object/apply:nerfstudio.utils.scripts.run_command ['touch {trap}']",
        "a: !!python/object/apply:nerfstudio.utils.scripts.subprocess.run [['touch', '{trap}']]",
        "!!python/module:antigravity",
        "!!python/name:os.system",
        "!!python/name:nerfstudio.utils.scripts.subprocess",
        "!!python/object:pathlib.PosixPath []",
        "!!python/object:int {{a: 1}}",
        "!!python/object/apply:pathlib.PosixPath [[1]]",
        "!!python/object/apply:nerfstudio.utils.writer.EventName [no such event]",
        "!!python/tuple 1",
        "!!python/object/apply:_operator.getitem [{{a: 1}}, a]",
        "!!python/object/apply:_operator.getitem [!!python/name:nerfstudio.engine.trainer.TrainerConfig , a]",
        "!!int x",
        "!!timestamp x",
        "[" * 100_000,
    ],
)
def test_nothing_in_a_config_is_executed(text: str, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    path = tmp_path / "config.yml"
    path.write_text(text.replace("{trap}", str(trap)).replace("{{", "{").replace("}}", "}"))
    with pytest.raises(PmniError, match=r"config\.yml: .*give the config\.yml that ns-train wrote") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["neus", "neus-facto", "nerfacto", "pmni", "pmni-original", "neus-facto-small"])
def test_configs_of_surface_methods_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    from nerfstudio.configs.method_configs import all_methods

    text = yaml.dump(all_methods[name])
    (tmp_path / "config.yml").write_text(text)
    assert yaml.dump(read_config(tmp_path / "config.yml")) == text


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_cli import fake_config

    config, checkpoint = fake_config(tmp_path, monkeypatch)
    torch.save({"pipeline": Trap(tmp_path / "sprung"), "step": 1}, checkpoint)
    with pytest.raises(PmniError, match=f"{checkpoint}: can't be read"):
        load_run(config, "cpu")
    assert not (tmp_path / "sprung").exists()


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mask_that_is_a_pipe", "channels_swapped", "cameras_with_a_trap"],
)
def test_training_does_not_begin(name: str, root: Path, tmp_path: Path) -> None:
    row = next(row for row in ERRORS if row.name == name)
    row.break_it(root)
    flags = ["--output-dir", str(tmp_path / "runs"), "--vis", "tensorboard", "--max-num-iterations", "5"]
    end = subprocess.run(
        [str(BIN / "ns-train"), "pmni-calibrated", "--data", str(root), *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "COLUMNS": "400"},
    )
    assert end.returncode == 1
    assert "Traceback" not in end.stdout + end.stderr
    errors = [line for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {root / row.where}")
    assert re.search(row.words, errors[0])
    assert not sprung(root).exists()
