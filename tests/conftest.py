# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests: the analytic sphere of helpers/scenes.py."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is loaded: threads that spin while they wait slow tests down many times on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from helpers.scenes import make_sphere

from pmni_nerfstudio.data.scene import Scene


@pytest.fixture
def sphere_scene() -> Scene:
    """The sphere in memory, with no files behind it."""
    return make_sphere().in_memory()


@pytest.fixture
def sphere_folder(tmp_path: Path) -> Path:
    """The sphere as a scene folder with depth maps."""
    return make_sphere().write(tmp_path / "sphere")
