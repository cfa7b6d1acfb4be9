# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare --normals-from`: maps written as each tool writes them come out in the package's axes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from helpers.importer_checks import assert_maps, prepare
from helpers.importer_files import NAMES, world_mats, write_maps
from helpers.scenes import AnalyticScene, make_tilted_ellipsoid

from pmni_nerfstudio.commands.prepare import PrepareCommand
from pmni_nerfstudio.data.images import write_exr, write_png
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.normal_tools import NORMAL_TOOLS


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    return make_tilted_ellipsoid()


def colors(normals: np.ndarray, mask: np.ndarray, background: float) -> np.ndarray:
    """16-bit colors, so that rounding does not hide a wrong axis."""
    return np.where(mask[..., None], np.round((normals + 1) / 2 * 65535), background * 65535).astype(np.uint16)


def stored(tool: str, kind: str, n: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A map as a tool stores it, from normals with x right, y up, z towards the viewer."""
    x, y, z = np.moveaxis(n, -1, 0)
    opencv = np.stack([x, -y, -z], axis=-1)
    left = np.stack([-x, y, z], axis=-1)
    if kind == "exr":
        return np.where(mask[..., None], n if tool == "sdm-unips" else opencv, 0).astype(np.float32)
    if kind == "npy":  # MonoSDF: channels first, from 0 to 1; Marigold: channels first, from -1 to 1
        vectors = (opencv + 1) / 2 if tool == "omnidata" else n
        return np.moveaxis(np.where(mask[..., None], vectors, 0), -1, 0).astype(np.float32)
    vectors = {
        "dsine": left,
        "geowizard": left,
        "omnidata": opencv,
        "metric3d": opencv[..., ::-1],  # x, y, z as blue, green, red
        "meshroom": np.stack([x, y, 2 * z - 1], axis=-1),  # blue is z from 0 to 1
    }.get(tool, n)
    background = {"stablenormal": 1.0, "lino-unips": 0.5, "uni-ms-ps": 0.5}.get(
        tool, 0.0
    )  # 0.5: vectors of length zero
    return colors(vectors, mask, background)


CASES = [
    *((tool, "png") for tool, known in NORMAL_TOOLS.items() if known.axes != "world"),
    ("meshroom", "exr"),
    ("moge", "exr"),
    ("metric3d", "exr"),
    ("sdm-unips", "exr"),
    ("omnidata", "npy"),
    ("marigold", "npy"),
]


def write_tool(folder: Path, truth: AnalyticScene, tool: str, kind: str, masks: bool = False) -> None:
    write_maps(folder, truth, NAMES, masks="mask" if masks else None)
    for view, name in enumerate(NAMES):
        (folder / "normal" / f"{name}.png").unlink()
        pixels = stored(tool, kind, truth.stored_normals(view, "camera"), truth.masks[view])
        path = folder / "normal" / f"{name}.{kind}"
        if kind == "npy":
            np.save(path, pixels)
        else:
            (write_png if kind == "png" else write_exr)(path, pixels)


@pytest.mark.parametrize(("tool", "kind"), CASES)
def test_maps_of_a_tool(truth: AnalyticScene, tmp_path: Path, tool: str, kind: str):
    write_tool(tmp_path / "src", truth, tool, kind)
    assert_maps(prepare(tmp_path / "src", tmp_path / "out", focal=500.0, normals_from=tool), truth)


@pytest.mark.parametrize("tool", ["blender", "mitsuba"])
def test_normals_in_the_world_of_the_cameras(truth: AnalyticScene, tmp_path: Path, tool: str):
    write_maps(tmp_path / "src", truth, NAMES, "world")
    np.savez(tmp_path / "src" / "cameras_sphere.npz", **world_mats(truth))
    assert_maps(prepare(tmp_path / "src", tmp_path / "out", normals_from=tool), truth)


def test_a_wrong_tool_is_noticed(truth: AnalyticScene, tmp_path: Path):
    write_tool(tmp_path / "src", truth, "dsine", "png")
    with pytest.raises(PmniError, match="axes"):
        prepare(tmp_path / "src", tmp_path / "out", focal=500.0, normals_from="omnidata")
    assert not (tmp_path / "out").exists()


def test_meshroom_s_world_normals_are_refused(truth: AnalyticScene, tmp_path: Path):
    write_tool(tmp_path / "src", truth, "meshroom", "exr")
    for file in (tmp_path / "src" / "normal").iterdir():
        file.rename(file.with_name(f"{file.stem}_normals_w.exr"))
    with pytest.raises(PmniError, match=r"_normals_w.exr: .*give .*_normals.exr"):
        prepare(tmp_path / "src", tmp_path / "out", focal=500.0, normals_from="meshroom")


def test_axes_and_tool_exclude_each_other(truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES)
    with pytest.raises(PmniError, match="--axes and --normals-from"):
        prepare(tmp_path / "src", tmp_path / "out", focal=500.0, normals_from="dsine", axes="camera")


def test_the_option_lists_all_tools():
    (choices,) = [arg for arg in get_args(get_type_hints(PrepareCommand)["normals_from"]) if arg is not type(None)]
    assert sorted(get_args(choices)) == sorted(NORMAL_TOOLS)
