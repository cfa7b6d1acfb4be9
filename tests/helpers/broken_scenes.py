# SPDX-License-Identifier: Apache-2.0
"""Ways to break a scene folder, with the message that each has to produce."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
from PIL import Image

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
    hardly_any,
    quantise,
    set_entry,
    shifted,
    use_intrinsics,
    with_infinities,
    without_left_part,
)
from helpers.scenes import look_at
from pmni_nerfstudio.data.camera_files import write_cameras
from pmni_nerfstudio.data.images import read_exr, read_mask, write_png

Break = Callable[[Path], object]


CAMERAS, DEPTH, MASK, EXR = "cameras_sphere.npz", "integration/depth/9.npy", "mask/9.png", f"{NORMALS}/9.exr"


@dataclass(frozen=True)
class Kind:
    """One way to break a scene."""

    name: str
    break_it: Break
    where: str
    """File or folder of the scene with which the message begins."""
    words: str
    """Pattern that the message contains."""


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
    """world_mat of an image flipped left to right."""
    return np.array([[-1, 0, WIDTH - 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ world_mat


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


# Name of the case, how to break the scene, where the message begins (inside the scene), what it contains.
ROWS: list[tuple[str, Break, str, str]] = [
    ("no folder", shutil.rmtree, "", "does not exist"),
    ("a file", lambda r: (shutil.rmtree(r), r.write_text("")), "", "is not a folder"),
    ("no normals folder", lambda r: shutil.rmtree(r / NORMALS), "", "no folder of normals"),
    ("several folders", several_folders, "", "several.*normal_camera_space_a, normal_world_space_b.*--normals-folder"),
    ("no mask folder", lambda r: shutil.rmtree(r / "mask"), "mask", "no such folder"),
    ("empty mask folder", lambda r: empty_folder(r / "mask"), "mask", "contains no .* file"),
    ("empty normals folder", lambda r: empty_folder(r / NORMALS), NORMALS, "contains no .* file"),
    ("a mask is missing", lambda r: (r / "mask/2.png").unlink(), "mask/2.png", f"missing .*{NORMALS}"),
    ("a normal map is missing", lambda r: (r / NORMALS / "10.exr").unlink(), f"{NORMALS}/10.exr", "missing .*mask"),
    ("another name", lambda r: (r / "mask/2.png").rename(r / "mask/02.png"), "mask/2.png", "missing"),
    ("two kinds of one view", two_kinds_of_one_view, NORMALS, "both 2.exr and 2.npy"),
    ("one view", only_one_view, "", "only one view, 1"),
    ("mask of another size", lambda r: change_mask(r, lambda m: m[:-3]), "mask/9.png", f"{WIDTH}x{HEIGHT - 3} .*9.exr is {WIDTH}x{HEIGHT}"),
    ("normals of another size", lambda r: change_normals(r, lambda n: n[:, 2:], ["2"]), f"{NORMALS}/2.exr", f"is {WIDTH - 2}x{HEIGHT}"),
    ("empty mask", lambda r: change_mask(r, np.zeros_like), "mask/9.png", "empty"),
    ("full mask", lambda r: change_mask(r, np.ones_like), "mask/9.png", "all foreground"),
    ("broken mask", lambda r: (r / "mask/9.png").write_text("x"), "mask/9.png", "not a readable image"),
    ("broken normals", lambda r: (r / NORMALS / "9.exr").write_text("x"), f"{NORMALS}/9.exr", "not an EXR"),
    ("infinite normals", lambda r: change_normals(r, with_infinities, ["2"]), f"{NORMALS}/2.exr", r"3 \(.*not finite"),
    ("hardly any normals", lambda r: change_normals(r, hardly_any, ["2"]), f"{NORMALS}/2.exr", "no normal.*at least 10% are needed"),
    ("NaN normals", lambda r: change_normals(r, lambda n: n * np.float32(np.nan), ["2"]), f"{NORMALS}/2.exr", r"\(100.0%\).*no normal"),
    ("inverted mask", lambda r: change_mask(r, np.logical_not), f"{NORMALS}/9.exr", "no normal.*the mask is inverted"),
    ("mask of another view", lambda r: change_normals(r, lambda n: shifted(n, 24), ["2"]), f"{NORMALS}/2.exr", "most normals .* outside of the mask"),
    ("long normals", lambda r: change_normals(r, lambda n: 3 * n), f"{NORMALS}/1.exr", "median length .* is 3"),
    ("colors to 1", lambda r: change_normals(r, lambda n: (n + 1) / 2), f"{NORMALS}/1.exr", "colors from 0 to 1"),
    ("colors to 255", lambda r: change_normals(r, lambda n: (n + 1) * 127.5), f"{NORMALS}/1.exr", "colors from 0 to 255"),
    ("one view inside out", lambda r: change_normals(r, lambda n: -n, ["9"]), f"{NORMALS}/9.exr", "0% of the normals"),
    ("no cameras", lambda r: (r / "cameras_sphere.npz").unlink(), "", "neither cameras_sphere.npz nor intrinsics.json"),
    ("text for cameras", lambda r: (r / "cameras_sphere.npz").write_text("x"), "cameras_sphere.npz", "can't be read"),
    ("empty cameras", lambda r: (r / "cameras_sphere.npz").write_bytes(b""), "cameras_sphere.npz", "can't be read"),
    ("cut cameras", lambda r: (r / "cameras_sphere.npz").write_bytes((r / "cameras_sphere.npz").read_bytes()[:700]), "cameras_sphere.npz", "can't be read"),
    ("array for cameras", lambda r: np.save((r / "cameras_sphere.npz").open("wb"), np.eye(4)), "cameras_sphere.npz", "not an archive"),
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
    ("stretched", lambda r: change_cameras(r, **{f"scale_mat_{i}": lambda m: m @ np.diag([1, 1, 1.1, 1]) for i in range(VIEWS)}), "cameras_sphere.npz", "not a uniform scale"),
    ("mirrored scale_mat", lambda r: change_cameras(r, **{f"scale_mat_{i}": lambda m: m @ np.diag([1, 1, -1, 1]) for i in range(VIEWS)}), "cameras_sphere.npz", "scale_mat_0 is mirrored"),
    ("OpenGL axes", lambda r: change_pose(r, ellipsoid(), 1, ellipsoid()["c2w"][1] @ np.diag([1, -1, -1, 1])), "cameras_sphere.npz", "world_mat_1 looks away"),
    ("inside the sphere", lambda r: change_pose(r, ellipsoid(), 1, look_at(np.array([0.5, 0, 0.3]))), "cameras_sphere.npz", "world_mat_1 .*inside the unit sphere"),
    ("of a large image", lambda r: change_all_cameras(r, np.diag([4.0, 4, 1, 1])), "cameras_sphere.npz", "world_mat_0.*principal point.*scale K"),
    ("K left out", lambda r: change_all_cameras(r, np.diag([1 / 180, 1 / 180, 1, 1])), "cameras_sphere.npz", "focal lengths of 1 and"),
    ("skew", lambda r: change_all_cameras(r, np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])), "cameras_sphere.npz", "skew"),
    ("text for intrinsics", lambda r: use_intrinsics(r, text="{"), "intrinsics.json", "as JSON"),
    ("list of intrinsics", lambda r: use_intrinsics(r, text="[1]"), "intrinsics.json", "not a JSON object"),
    ("no fl_y", lambda r: use_intrinsics(r, fl_y=None), "intrinsics.json", "fl_y is missing"),
    ("words", lambda r: use_intrinsics(r, cx="36"), "intrinsics.json", "cx is not a finite number"),
    ("NaN in JSON", lambda r: use_intrinsics(r, cx=float("nan")), "intrinsics.json", "cx is not a finite number"),
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
    """Remove a view's maps but not its camera."""
    for file in root.rglob(f"{name}.*"):
        file.unlink()


ERRORS += [Kind(*row) for row in ROWS]


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def sprung(root: Path) -> Path:
    """File that a trap in a scene creates."""
    return root.parent / "sprung"


def cut(file: Path, share: float = 0.6) -> None:
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def replace(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, 1))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than its data have."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def npy_of_shape(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """An .npy file with a header and hardly any data."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue() + bytes(64)


def as_npy(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Replace view 9's normals by a changed .npy file."""
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
    """Replace a file by something else."""
    file.unlink()
    make(file)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@error(MASK, "not a readable image.*export it again")
def mask_without_a_byte(root: Path) -> None:
    (root / MASK).write_bytes(b"")


@error(MASK, "not a readable image.*truncated")
def mask_cut_short(root: Path) -> None:
    cut(root / MASK)


@error(MASK, "not a readable image")
def mask_with_one_wrong_bit(root: Path) -> None:
    data = bytearray((root / MASK).read_bytes())
    data[len(data) // 2] ^= 1
    (root / MASK).write_bytes(data)


@error(MASK, "not a regular file")
def mask_that_is_a_folder(root: Path) -> None:
    special(root / MASK, Path.mkdir)


@error(MASK, "not a regular file")
def mask_that_links_to_itself(root: Path) -> None:
    special(root / MASK, link_to_itself)


@error(MASK, "not a regular file")
def mask_that_links_to_nothing(root: Path) -> None:
    special(root / MASK, lambda path: path.symlink_to("gone"))


@error(MASK, "not a regular file")
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


@error("mask/9.jpg", "truncated")
def jpeg_mask_cut_short(root: Path) -> None:
    Image.fromarray(read_mask(root / MASK)).convert("L").save(root / "mask/9.jpg")
    (root / MASK).unlink()
    cut(root / "mask/9.jpg")


@error(MASK, "not a readable image")
def mask_of_another_format(root: Path) -> None:
    (root / MASK).write_bytes(cv2.imencode(".tiff", np.zeros((HEIGHT, WIDTH), np.uint8))[1].tobytes())


@error(MASK, "has 13000x13000 pixels according to its header, at most 134,217,728")
def mask_with_a_large_header(root: Path) -> None:
    (root / MASK).write_bytes(png_of_size(13000, 13000))


@error(MASK, "too large according to its header")
def mask_with_an_enormous_header(root: Path) -> None:
    (root / MASK).write_bytes(png_of_size(2**31 - 1, 2**31 - 1))


@error(f"{NORMALS}/1.exr", "the mask is inverted, paint the object white")
def masks_inverted(root: Path) -> None:
    for name in NAMES:
        change_mask(root, np.logical_not, name)


@error(MASK, "empty.*remove the view")
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


@error("", "no folder of normals")
def normals_folder_that_is_a_file(root: Path) -> None:
    shutil.rmtree(root / NORMALS)
    (root / NORMALS).write_text("")


@error(EXR, "not an EXR file")
def exr_without_a_byte(root: Path) -> None:
    (root / EXR).write_bytes(b"")


@error(EXR, "truncated or damaged; export the EXR file again")
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


@error(EXR, "has 72x4000000 pixels according to its header")
def exr_with_an_enormous_header(root: Path) -> None:
    for name in ("displayWindow", "dataWindow"):
        replace(root / EXR, box(name, WIDTH, HEIGHT), box(name, WIDTH, 4_000_000))


def box(name: str, width: int, height: int) -> bytes:
    """An entry of an EXR header."""
    return name.encode() + b"\0box2i\0" + struct.pack("<iiiii", 16, 0, 0, width - 1, height - 1)


@error(f"{NORMALS}/9.png", "grayscale image")
def png_normals_that_are_grey(root: Path) -> None:
    write_png(as_png(root), np.full((HEIGHT, WIDTH), 200, np.uint8))


@error(f"{NORMALS}/9.png", "truncated")
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


@error(f"{NORMALS}/9.npy", "not a float array")
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


@error(NORMALS, "normals in world space: .*rename the folder to normal_world_space_NAME")
def world_normals_called_camera_normals(root: Path) -> None:
    add_world_normals(root, ellipsoid())
    shutil.rmtree(root / NORMALS)
    (root / "normal_world_space_GT").rename(root / NORMALS)


@error("normal_world_space_GT", "normals in camera space: .*rename the folder to normal_camera_space_NAME")
def camera_normals_called_world_normals(root: Path) -> None:
    (root / NORMALS).rename(root / "normal_world_space_GT")


@error(CAMERAS, "not a regular file")
def cameras_that_are_a_folder(root: Path) -> None:
    special(root / CAMERAS, Path.mkdir)


@error(CAMERAS, "not a regular file")
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


@error(CAMERAS, "world_mat_1 has entries of magnitude 1.*e.300")
def cameras_too_large_to_multiply(root: Path) -> None:
    change_cameras(root, world_mat_1=lambda m: m / np.abs(m).max() * 1e300)


@error(CAMERAS, "scale_mat_0 is not a uniform scale")
def scale_mat_of_zeros(root: Path) -> None:
    change_cameras(root, **{f"scale_mat_{i}": np.zeros_like for i in range(VIEWS)})


@error(CAMERAS, "world_mat_0 is a mirrored camera")
def one_focal_length_negative(root: Path) -> None:
    K = np.eye(4)
    K[:3, :3] = ellipsoid()["K"][0]
    change_all_cameras(root, K @ np.diag([-1, 1, 1, 1]) @ np.linalg.inv(K))


@warning(CAMERAS, "all cameras are within .* of one place.*not camera to world")
def cameras_that_are_inverted_poses(root: Path) -> None:
    """Camera to world instead of world to camera."""
    truth = ellipsoid()
    write_cameras(root / CAMERAS, truth["K"], np.linalg.inv(truth["c2w"]), truth["world_from_unit"])


def scale_units(root: Path, factor: float) -> None:
    scaled = np.diag([factor, factor, factor, 1])
    change_cameras(root, **{f"scale_mat_{i}": lambda m: m @ scaled for i in range(VIEWS)})


@error(CAMERAS, "inside the unit sphere.*fit scale_mat to the object")
def scale_mat_a_thousand_times_too_large(root: Path) -> None:
    scale_units(root, 1000)


@error(CAMERAS, "unit sphere is .* times smaller than the masks.*same units")
def scale_mat_a_thousand_times_too_small(root: Path) -> None:
    scale_units(root, 1e-3)


@error(CAMERAS, "inside the unit sphere|looks away")
def cameras_in_meters_and_scale_mat_in_millimeters(root: Path) -> None:
    meters = np.diag([1000.0, 1000, 1000, 1])  # a world a thousand times smaller seen by the same cameras
    change_cameras(root, **{f"world_mat_{i}": lambda m: m @ meters for i in range(VIEWS)})


def intrinsics(words: str, text: str | None = None, **changes: object) -> Callable[[Break], Break]:
    """Break a scene by `use_intrinsics` with these arguments."""

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


@intrinsics("fl_x is not a finite number", fl_x=float("inf"))
def intrinsics_that_are_infinite(root: Path) -> None: ...


@intrinsics("fl_y is not a finite number", fl_y=10**400)
def intrinsics_beyond_all_floats(root: Path) -> None: ...


@intrinsics("focal length of 0 px", fl_x=0)
def intrinsics_with_focal_length_zero(root: Path) -> None: ...


@intrinsics("w is not a finite number", w=True)
def intrinsics_of_booleans(root: Path) -> None: ...


@intrinsics("72.5 and 60.*whole", w=72.5)
def intrinsics_of_half_a_pixel(root: Path) -> None: ...


@intrinsics("fl_x is not a finite number", fl_x=[180])
def intrinsics_of_lists(root: Path) -> None: ...


@error("intrinsics.json", "can't be read as JSON")
def intrinsics_in_no_encoding(root: Path) -> None:
    use_intrinsics(root)
    (root / "intrinsics.json").write_bytes(b"\xff\xfe{}")


@error("intrinsics.json", "not a regular file")
def intrinsics_that_are_a_folder(root: Path) -> None:
    use_intrinsics(root)
    special(root / "intrinsics.json", Path.mkdir)


@error(DEPTH, "can't be read")
def depth_without_a_byte(root: Path) -> None:
    (root / DEPTH).write_bytes(b"")


@error(DEPTH, "can't be read")
def depth_cut_short(root: Path) -> None:
    cut(root / DEPTH)


@error(DEPTH, "not a float array")
def depth_of_integers(root: Path) -> None:
    np.save(root / DEPTH, np.ones((HEIGHT, WIDTH), np.uint16))


@error(DEPTH, "can't be read")
def depth_that_is_a_pickle(root: Path) -> None:
    np.save(root / DEPTH, np.array([Trap(sprung(root))], dtype=object), allow_pickle=True)


@error(DEPTH, "can't be read")
def depth_with_an_enormous_header(root: Path) -> None:
    (root / DEPTH).write_bytes(npy_of_shape((1 << 40, 1 << 40)))


@error("integration/depth", "contains no .* file")
def depth_folder_that_is_empty(root: Path) -> None:
    shutil.rmtree(root / "integration/depth")
    (root / "integration/depth").mkdir()


@warning(f"{NORMALS}/9.exr", "normalized")
def normals_ten_percent_short(root: Path) -> None:
    change_normals(root, lambda n: n * np.float32(0.9), ["9"])


@warning(f"{NORMALS}/9.exr", "a rim without normals around the object; they were removed from the mask")
def mask_a_pixel_too_wide(root: Path) -> None:
    change_mask(root, lambda m: m | np.roll(m, 1, axis=1))


@warning(f"{NORMALS}/9.exr", "a rim without normals around the object; they were removed from the mask")
def mask_two_pixels_too_wide(root: Path) -> None:
    change_mask(root, lambda m: m | np.roll(m, 2, axis=1) | np.roll(m, -2, axis=1))


@warning(f"{NORMALS}/9.exr", "have no normal .*pixels outside have one; check that the mask is of this view")
def mask_that_is_shifted(root: Path) -> None:
    change_mask(root, lambda m: np.roll(m, 8, axis=1))


@warning(NORMALS, r"without a normal, which count for the silhouette only, in 1 of 4 views: 2: \d+ \((4|5)\d%\)$")
def half_of_the_normals_missing(root: Path) -> None:
    change_normals(root, without_left_part, ["2"])


@warning(f"{NORMALS}/9.exr", "same normals as 1.exr")
def view_twice_without_poses(root: Path) -> None:
    use_intrinsics(root)
    for folder, suffix in (("mask", ".png"), (NORMALS, ".exr"), ("integration/depth", ".npy")):
        for name, other in (("2", "10"), ("1", "9")):
            shutil.copy(root / folder / f"{name}{suffix}", root / folder / f"{other}{suffix}")


@warning(CAMERAS, "world_mat_1 and world_mat_3 are the same camera")
def camera_twice(root: Path) -> None:
    change_cameras(root, world_mat_3=lambda _: dict(np.load(root / CAMERAS))["world_mat_1"])


@warning("mask/1.png", "reaches the image border.*in 4 of 4 views")
def object_cut_by_the_frame(root: Path) -> None:
    left = WIDTH // 2 - 3
    for name in NAMES:
        change_mask(root, lambda m: m[:, left:], name)
        np.save(root / f"integration/depth/{name}.npy", np.load(root / f"integration/depth/{name}.npy")[:, left:])
    change_normals(root, lambda n: n[:, left:])
    shift = np.eye(4)
    shift[0, 2] = -left
    change_all_cameras(root, shift)


@warning("mask", "white along the image border; check that they are not inverted")
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
