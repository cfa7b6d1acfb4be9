# SPDX-License-Identifier: Apache-2.0
"""Normal maps and masks in the formats and ranges that programs write."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from helpers.scenes import make_tilted_ellipsoid
from PIL import Image

from pmni_nerfstudio.data.images import read_mask, read_normals, write_exr
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import SceneError

TRUTH = make_tilted_ellipsoid()
NORMALS, MASK = TRUTH.stored_normals(2, "camera").astype(np.float32), TRUTH.masks[2]


def write_pfm(path: Path, array: np.ndarray, kind: str) -> None:
    header = (
        f"{'PF' if array.ndim == 3 else 'Pf'}\n{array.shape[1]} {array.shape[0]}\n{'-1.0' if kind == '<f4' else '1'}\n"
    )
    path.write_bytes(header.encode() + array[::-1].astype(kind).tobytes())


def write_normals(path: Path, way: str) -> float:
    """Write NORMALS; returns the largest error of a component."""
    bits = 16 if "16" in way else 8
    colors = np.round((NORMALS + 1) / 2 * (2**bits - 1)).astype(np.uint16 if bits == 16 else np.uint8)
    if way in ("little.pfm", "big.pfm"):
        write_pfm(path, NORMALS, "<f4" if way == "little.pfm" else ">f4")
    elif way == "float.tif":
        tifffile.imwrite(path, NORMALS, photometric="rgb")
    elif way in ("16.tif", "8.tiff"):
        tifffile.imwrite(path, colors, photometric="rgb")
    elif way == "one.npz":
        np.savez_compressed(path, normals=NORMALS)
    else:
        Image.fromarray(colors).save(path, quality=98, subsampling=0)
        return 0.06 if way.endswith("jpg") else 0.005
    return 1e-6 if "8" not in way and "16" not in way else 2.0 / (2**bits - 1)


@pytest.mark.parametrize("way", ["little.pfm", "big.pfm", "float.tif", "16.tif", "8.tiff", "one.npz", "8.bmp", "8.jpg"])
def test_formats_of_normals(way: str, tmp_path: Path):
    path = tmp_path / f"a.{way.split('.')[1]}"
    tolerance = write_normals(path, way)
    read = read_normals(path)
    assert read.dtype == np.float32 and np.abs(read - NORMALS)[MASK].max() <= tolerance


def test_a_tiff_file_that_has_lost_negative_values_is_refused(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "a.tif"), NORMALS[..., ::-1])
    with pytest.raises(SceneError, match="LogLuv, which has lost the negative values; save normals as EXR"):
        read_normals(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".tif", ".pfm", ".npz", ".jpg", ".bmp"])
def test_broken_files_are_reported_in_one_line(suffix: str, tmp_path: Path):
    for content in (b"", b"PF\n9 9\n-1\nx", b"II*\0junk", b"PK\3\4"):
        (tmp_path / f"a{suffix}").write_bytes(content)
        with pytest.raises(SceneError) as error:
            read_normals(tmp_path / f"a{suffix}")
        assert "\n" not in str(error.value)


RANGES = {
    "16 bits of 0 and 255": MASK.astype(np.uint16) * 255,
    "labels 0 and 2": MASK.astype(np.uint8) * 2,
    "gray 0 and 100": MASK.astype(np.uint8) * 100,
    "gray 0 and 127": MASK.astype(np.uint8) * 127,
    "16 bits of 0 and 3": MASK.astype(np.uint16) * 3,
    "labels 1 and 2": MASK.astype(np.uint8) + 1,
    "0 and 65535": MASK.astype(np.uint16) * 65535,
    "0 and 1": MASK.astype(np.uint8),
}


@pytest.mark.parametrize("kind", RANGES)
def test_ranges_of_masks(kind: str, tmp_path: Path):
    cv2.imwrite(str(tmp_path / "a.png"), RANGES[kind])
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), MASK)


def test_smoothed_masks_begin_at_half(tmp_path: Path):
    smooth = cv2.GaussianBlur(MASK.astype(np.float32), (0, 0), 1.0)
    for top in (255, 127, 80):
        image = np.round(top * smooth / smooth.max()).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "a.png"), image)
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), image > image.max() / 2)
    noise = np.random.default_rng(0).integers(0, 9, MASK.shape).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    assert not read_mask(tmp_path / "a.png").any()


@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".webp", ".pgm", ".npy", ".npz", ".exr"])
def test_formats_of_masks(suffix: str, tmp_path: Path):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, MASK.astype(np.float32))
    elif suffix == ".npz":
        np.savez(path, MASK)
    elif suffix == ".exr":
        write_exr(path, MASK.astype(np.float32))
    else:
        Image.fromarray(MASK.astype(np.uint8) * 255).save(path, lossless=True)
    np.testing.assert_array_equal(read_mask(path), MASK)


def test_a_scene_folder_of_other_formats(tmp_path: Path):
    TRUTH.write(tmp_path)
    for i, name in enumerate(TRUTH.names):
        (tmp_path / "normal_camera_space_GT" / f"{name}.exr").unlink()
        (tmp_path / "mask" / f"{name}.png").unlink()
        colors = np.round((TRUTH.stored_normals(i, "camera") + 1) * 127.5).astype(np.uint8)
        Image.fromarray(colors).save(tmp_path / "normal_camera_space_GT" / f"{name}.jpg", quality=99, subsampling=0)
        Image.fromarray(TRUTH.masks[i]).save(tmp_path / "mask" / f"{name}.tif")
    scene = read_scene(tmp_path)
    np.testing.assert_array_equal(scene.masks, TRUTH.masks)
    assert any("lossy format" in line for line in scene.warnings)
