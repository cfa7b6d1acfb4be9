"""Scenes whose maps are parts of larger frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pmni_nerfstudio.data.camera_files import read_cameras, write_cameras
from pmni_nerfstudio.data.cropped_frames import CROPPED, write_cropped
from pmni_nerfstudio.data.scene import CAMERAS, read_scene
from pmni_nerfstudio.errors import SceneError

SHIFT = 500


@pytest.fixture
def cropped_folder(sphere_folder: Path) -> Path:
    """The sphere, as if its maps were parts of frames that begin 500 columns further left."""
    scene = read_scene(sphere_folder)
    K, c2w, world_from_unit = read_cameras(sphere_folder / CAMERAS, scene.num_views)
    K[:, 0, 2] -= SHIFT
    write_cameras(sphere_folder / CAMERAS, K, c2w, world_from_unit)
    return sphere_folder


def test_principal_points_may_lie_far_outside_of_recorded_parts(cropped_folder: Path) -> None:
    with pytest.raises(SceneError, match="principal point .* is far outside"):
        read_scene(cropped_folder)
    count = len(list((cropped_folder / "mask").iterdir()))
    write_cropped(cropped_folder, np.tile([[SHIFT, 0]], (count, 1)), 600 + SHIFT, 100)
    scene = read_scene(cropped_folder)
    assert scene.K[0, 0, 2] < 0, "the intrinsics are those of the parts"


def test_a_record_of_other_views_is_refused(cropped_folder: Path) -> None:
    write_cropped(cropped_folder, np.zeros((1, 2), dtype=int), 600, 100)
    with pytest.raises(SceneError, match=f"{CROPPED}: does not hold corner and size of"):
        read_scene(cropped_folder)
