# SPDX-License-Identifier: Apache-2.0
"""examples/09_blender_turntable.py in a real Blender, where the bpy package is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.importer_checks import prepare
from helpers.programs import run
from helpers.scenes import Cube, world_rays

from pmni_nerfstudio.geometry.normals import angular_error_deg
from pmni_nerfstudio.geometry.transforms import flip_camera_axes, transform_poses

EXAMPLE = Path(__file__).parents[2] / "examples" / "09_blender_turntable.py"
PICTURE = (64, 48)


@pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="needs Blender as a module")
def test_normals_and_cameras_of_the_cube_that_blender_starts_with(tmp_path: Path):
    options = ["--views", "5", "--size", "64x48", "--samples", "16"]
    ended = run([sys.executable, str(EXAMPLE), str(tmp_path / "src"), *options], folder=tmp_path)
    assert ended.code == 0, ended.output[-2000:]
    scene = prepare(tmp_path / "src", tmp_path / "out", normals_from="blender")
    frames = json.loads((tmp_path / "src" / "transforms.json").read_text())["frames"]
    c2w = flip_camera_axes(np.array([frame["transform_matrix"] for frame in frames]))
    assert scene.c2w is not None
    np.testing.assert_allclose(transform_poses(scene.world_from_unit, scene.c2w), c2w, atol=1e-5)
    origins, rays = world_rays(scene.K, c2w, *PICTURE)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    distance, normals = Cube(1.0).intersect(origins[:, None, None], rays)
    assert (scene.masks != np.isfinite(distance)).mean() < 0.02
    normals = np.einsum("nji,nhwj->nhwi", c2w[:, :3, :3], normals)
    both = scene.masks & np.isfinite(distance)
    assert np.median(angular_error_deg(scene.normals, normals)[both]) < 0.1
