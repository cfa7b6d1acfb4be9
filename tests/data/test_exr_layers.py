# SPDX-License-Identifier: Apache-2.0
"""Normals among the layers of renderers' EXR files, in the layouts of Blender 4.5.15 and 5.0.1 and of Mitsuba 3.9.1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from pmni_nerfstudio.data.images import read_mask, read_normals
from pmni_nerfstudio.errors import SceneError

RNG = np.random.default_rng(0)
NORMALS = RNG.normal(size=(9, 11, 3)).astype(np.float32)
NORMALS /= np.linalg.norm(NORMALS, axis=-1, keepdims=True)
COMBINED = {f"ViewLayer.Combined.{c}": RNG.random((9, 11), np.float32) for c in "RGBA"}
POSITION = {f"ViewLayer.Position.{c}": RNG.random((9, 11), np.float32) for c in "XYZ"}


def layer(prefix: str, names: str = "XYZ", normals: np.ndarray = NORMALS) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": np.ascontiguousarray(normals[..., i]) for i, name in enumerate(names)}


def header() -> dict:
    return {"type": OpenEXR.scanlineimage, "compression": OpenEXR.ZIP_COMPRESSION}


def write_parts(path: Path, parts: dict[str, dict[str, np.ndarray]]) -> Path:
    OpenEXR.File([OpenEXR.Part(header(), channels, name) for name, channels in parts.items()]).write(str(path))
    return path


def write_one(path: Path, channels: dict[str, np.ndarray]) -> Path:
    OpenEXR.File(header(), channels).write(str(path))
    return path


def test_blender_5_writes_a_part_for_each_layer(tmp_path: Path):
    parts = {
        "ViewLayer.Combined": COMBINED,
        "ViewLayer.Depth": {"ViewLayer.Depth.V": RNG.random((9, 11), np.float32)},
        "ViewLayer.Position": POSITION,
        "ViewLayer.Normal": layer("ViewLayer.Normal."),
        "ViewLayer.Denoising Normal": layer("ViewLayer.Denoising Normal.", normals=-NORMALS),
    }
    np.testing.assert_array_equal(read_normals(write_parts(tmp_path / "n.exr", parts)), NORMALS)


def test_blender_4_writes_one_part(tmp_path: Path):
    channels = {**COMBINED, **POSITION, **layer("ViewLayer.Normal.")}
    np.testing.assert_array_equal(read_normals(write_one(tmp_path / "n.exr", channels)), NORMALS)


@pytest.mark.parametrize("prefix", ["nn.", "normals.", "sh_normal.", "N."])
def test_mitsuba_names_layers_as_the_user_did(tmp_path: Path, prefix: str):
    colors = {name: RNG.random((9, 11), np.float32) for name in ("R", "G", "B", "A", "img.R", "img.G", "img.B", "dd.T")}
    file = write_one(tmp_path / "n.exr", {**colors, **layer("pp.", normals=3 * NORMALS), **layer(prefix)})
    np.testing.assert_array_equal(read_normals(file), NORMALS)


def test_parts_may_name_the_layer_instead_of_the_channels(tmp_path: Path):
    colors = {name: RNG.random((9, 11), np.float32) for name in "RGB"}
    file = write_parts(tmp_path / "n.exr", {"rgb": colors, "normals": layer("", "RGB")})
    np.testing.assert_array_equal(read_normals(file), NORMALS)


def test_several_layers_of_normals_are_named(tmp_path: Path):
    parts = {"A": layer("Ground.Normal."), "B": layer("Object.Normal."), "C": COMBINED}
    with pytest.raises(
        SceneError, match=r"several layers of normals \(Ground.Normal, Object.Normal\); export only one"
    ):
        read_normals(write_parts(tmp_path / "n.exr", parts))
    with pytest.raises(SceneError, match=r"several layers of normals \(geo_normal, sh_normal\)"):
        read_normals(write_one(tmp_path / "m.exr", {**layer("sh_normal."), **layer("geo_normal.")}))


@pytest.mark.parametrize("channels", [{**COMBINED, **POSITION}, {**layer("", "RGB"), "Z": NORMALS[..., 0].copy()}])
def test_files_without_a_layer_of_normals_are_refused(tmp_path: Path, channels: dict[str, np.ndarray]):
    with pytest.raises(SceneError, match=r"n.exr: has the channels .*; export R, G, B only, or a layer of normals"):
        read_normals(write_one(tmp_path / "n.exr", channels))


def test_masks_are_not_taken_from_a_layer_of_normals(tmp_path: Path):
    with pytest.raises(SceneError, match="export R, G, B only$"):
        read_mask(write_one(tmp_path / "mask.exr", {**COMBINED, **layer("ViewLayer.Normal.")}))


def test_a_truncated_part_is_not_mistaken_for_a_missing_layer(tmp_path: Path):
    file = write_parts(tmp_path / "n.exr", {"a": COMBINED, "b": layer("ViewLayer.Normal.")})
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(SceneError, match="n.exr: is truncated or damaged"):
        read_normals(file)


def test_a_part_that_is_cropped_is_refused(tmp_path: Path):
    whole, part = ((0, 0), (10, 8)), ((0, 0), (10, 4))
    parts = [
        OpenEXR.Part({**header(), "displayWindow": whole, "dataWindow": window}, channels, name)
        for name, channels, window in (
            ("a", COMBINED, whole),
            ("b", layer("ViewLayer.Normal.", normals=NORMALS[:5]), part),
        )
    ]
    OpenEXR.File(parts).write(str(tmp_path / "n.exr"))
    with pytest.raises(SceneError, match="n.exr: is cropped|n.exr: is truncated or damaged"):
        read_normals(tmp_path / "n.exr")
