# SPDX-License-Identifier: Apache-2.0
"""Map files: round trips, decoding of each format, and one-line errors for broken files."""

from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.images import (
    open_npy,
    read_depth,
    read_exr,
    read_mask,
    read_normals,
    write_exr,
    write_png,
)
from pmni_nerfstudio.errors import SceneError, exit_on_error

SIDES = st.tuples(st.integers(1, 7), st.integers(1, 7))
FAST = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def unit_normals(height: int = 9, width: int = 11, seed: int = 0) -> np.ndarray:
    normals = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


@FAST
@given(st.data(), st.booleans())
def test_exr_round_trip_is_exact(folder: Path, data: st.DataObject, half: bool) -> None:
    side = data.draw(SIDES)
    shape = side if data.draw(st.booleans()) else (*side, 3)
    width = 16 if half else 32
    array = data.draw(hnp.arrays(np.dtype(f"f{width // 8}"), shape, elements=st.floats(-4, 4, width=width)))
    write_exr(folder / "a.exr", array, half=half)
    back = read_exr(folder / "a.exr")
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, array.astype(np.float32))


def test_exr_of_a_strided_view(folder: Path) -> None:
    normals = unit_normals()[:, ::-1, ::-1]
    write_exr(folder / "strided.exr", normals)
    np.testing.assert_array_equal(read_exr(folder / "strided.exr"), normals)


def test_exr_channels_by_name(folder: Path) -> None:
    normals = unit_normals()
    channels = {name: np.ascontiguousarray(normals[..., i]) for i, name in enumerate("XYZ")}
    OpenEXR.File({"type": OpenEXR.scanlineimage}, channels).write(str(folder / "xyz.exr"))
    np.testing.assert_array_equal(read_normals(folder / "xyz.exr"), normals)
    write_exr(folder / "rgba.exr", np.concatenate([normals, np.ones_like(normals[..., :1])], axis=-1))
    np.testing.assert_array_equal(read_normals(folder / "rgba.exr"), normals)


@FAST
@given(st.data(), st.sampled_from([np.uint8, np.uint16]))
def test_png_normals_are_value_over_max(folder: Path, data: st.DataObject, dtype: type) -> None:
    shape = (*data.draw(SIDES), data.draw(st.sampled_from([3, 4])))
    pixels = data.draw(hnp.arrays(dtype, shape))
    write_png(folder / "n.png", pixels)
    top = float(np.iinfo(dtype).max)
    normals = read_normals(folder / "n.png")
    for y in range(shape[0]):
        for x in range(shape[1]):
            rgb = pixels[y, x, :3].astype(float)
            expected = rgb / top * 2 - 1 if rgb.any() else np.zeros(3)
            np.testing.assert_allclose(normals[y, x], expected, atol=1e-6)


@FAST
@given(st.data(), st.sampled_from([np.uint8, np.uint16]), st.sampled_from([(), (3,), (4,)]))
def test_png_values_are_kept(folder: Path, data: st.DataObject, dtype: type, channels: tuple[int, ...]) -> None:
    pixels = data.draw(hnp.arrays(dtype, (*data.draw(SIDES), *channels)))
    write_png(folder / "p.png", pixels)
    stored = cv2.imread(str(folder / "p.png"), cv2.IMREAD_UNCHANGED)
    if channels:
        stored = stored[..., [2, 1, 0, 3][: channels[0]]]
    np.testing.assert_array_equal(stored, pixels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_normals(folder: Path, dtype: type) -> None:
    normals = unit_normals().astype(dtype)
    np.save(folder / "n.npy", normals)
    back = read_normals(folder / "n.npy")
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, normals.astype(np.float32))


def masks_in_files() -> dict[str, np.ndarray]:
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:5, 1:4] = True
    white = np.full((6, 8, 3), 200, np.uint8)
    return {
        "bool": mask,
        "gray": np.where(mask, 255, 0).astype(np.uint8),
        "antialiased": np.where(mask, 140, 110).astype(np.uint8),
        "ones": mask.astype(np.uint8),
        "16 bit": np.where(mask, 65535, 3000).astype(np.uint16),
        "red": np.where(mask[..., None], [255, 0, 0], 0).astype(np.uint8),
        "opaque": np.dstack([np.where(mask, 255, 0)] * 3 + [np.full_like(mask, 255, np.uint8)]).astype(np.uint8),
        "cut-out": np.dstack([white, np.where(mask, 255, 0).astype(np.uint8)]),
    }


@pytest.mark.parametrize("kind", masks_in_files())
def test_masks_of_all_kinds(folder: Path, kind: str) -> None:
    files = masks_in_files()
    write_png(folder / "m.png", files[kind])
    np.testing.assert_array_equal(read_mask(folder / "m.png"), files["bool"])


def test_dark_noise_is_background(folder: Path) -> None:
    write_png(folder / "dark.png", np.array([[0, 40], [3, 0]], np.uint8))
    assert not read_mask(folder / "dark.png").any()


def test_depth_is_zero_where_unknown(folder: Path) -> None:
    np.save(folder / "d.npy", np.array([[np.nan, 2.5], [0, np.inf]]))
    np.testing.assert_array_equal(read_depth(folder / "d.npy"), np.array([[0, 2.5], [0, 0]], np.float32))


def test_opening_npy_reads_nothing(folder: Path) -> None:
    np.save(folder / "large.npy", np.zeros((4, 5), np.float32))
    assert isinstance(open_npy(folder / "large.npy"), np.memmap)


def save_pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def write_cut(path: Path) -> None:
    writer = write_exr if path.suffix == ".exr" else write_png
    writer(path, (unit_normals(40, 40) * 100 + 100).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-200])


def write_cropped_exr(path: Path) -> None:
    header = {"type": OpenEXR.scanlineimage, "displayWindow": ((0, 0), (19, 19)), "dataWindow": ((0, 0), (10, 8))}
    OpenEXR.File(header, {"RGB": unit_normals()}).write(str(path))


def write_other_channels(path: Path) -> None:
    OpenEXR.File({"type": OpenEXR.scanlineimage}, {"u": np.zeros((2, 2), "f"), "v": np.zeros((2, 2), "f")}).write(
        str(path)
    )


BROKEN = [
    ("missing.exr", read_normals, lambda path: None, "No such file"),
    ("missing.png", read_mask, lambda path: None, "No such file"),
    ("missing.npy", read_depth, lambda path: None, "No such file"),
    ("text.exr", read_normals, lambda path: path.write_text("hello"), "not an EXR file"),
    ("empty.exr", read_normals, lambda path: path.write_bytes(b""), "not an EXR file"),
    ("cut.exr", read_normals, write_cut, "truncated or damaged"),
    ("cropped.exr", read_normals, write_cropped_exr, "cropped"),
    ("uv.exr", read_normals, write_other_channels, "channels u, v"),
    ("depth.exr", read_normals, lambda path: write_exr(path, np.zeros((4, 4))), r"shape \(4, 4\)"),
    ("text.png", read_normals, lambda path: path.write_text("hello"), "not a readable image"),
    ("empty.png", read_mask, lambda path: path.write_bytes(b""), "not a readable image"),
    ("cut.png", read_mask, write_cut, "truncated"),
    ("gray.png", read_normals, lambda path: write_png(path, np.ones((4, 4), np.uint8)), "grayscale"),
    ("text.npy", read_normals, lambda path: path.write_text("hello"), "can't be read"),
    ("pickle.npy", read_normals, save_pickle, "can't be read"),
    ("ints.npy", read_normals, lambda path: np.save(path, np.ones((4, 4, 3), int)), "not a float array"),
    ("planes.npy", read_normals, lambda path: np.save(path, np.ones((3, 4, 4))), r"\(3, 4, 4\)"),
    ("normals.gif", read_normals, lambda path: path.write_text(""), r"can't be read from .gif"),
    ("volume.npy", read_depth, lambda path: np.save(path, np.ones((3, 4, 4))), r"\(height, width\)"),
    ("behind.npy", read_depth, lambda path: np.save(path, -np.ones((4, 4))), "negative"),
]


@pytest.mark.parametrize(("name", "read", "write", "phrase"), BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_files_raise_a_one_line_error(tmp_path: Path, name: str, read, write, phrase: str) -> None:
    write(tmp_path / name)
    with pytest.raises(SceneError, match=phrase) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("write", [write_exr, write_png])
def test_writers_reject_other_shapes(tmp_path: Path, write) -> None:
    with pytest.raises(ValueError, match="array"):
        write(tmp_path / "a.png", np.zeros((4, 4, 2), np.uint8))
    assert not list(tmp_path.iterdir())


def test_atomic_path_replaces_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_leaves_no_file_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_exit_on_error_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise SceneError("scene/mask: is missing; add it")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: scene/mask: is missing; add it\n"


def test_exit_on_error_passes_other_exceptions() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error():
        raise ZeroDivisionError
