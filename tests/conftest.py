# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests, and the order in which files of tests run."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is loaded: threads that spin while they wait slow tests down many times on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from helpers.scenes import make_sphere
from helpers.trained_run import trained_run  # noqa: F401

from pmni_nerfstudio.data.scene import Scene


@pytest.fixture
def sphere_scene() -> Scene:
    """The sphere in memory, with no files behind it."""
    return make_sphere().in_memory()


@pytest.fixture
def sphere_folder(tmp_path: Path) -> Path:
    """The sphere as a scene folder with depth maps."""
    return make_sphere().write(tmp_path / "sphere")


LONGEST = (
    "test_registration.py",
    "test_model.py",
    "test_documentation.py",
    "test_kills.py",
    "test_concurrency.py",
    "test_nerfstudio_tools.py",
    "test_studies.py",
    "test_faults_training.py",
    "test_live.py",
    "test_prepare_cameras.py",
    "test_bias.py",
    "test_fuzz.py",
    "test_broken_scenes.py",
    "test_view.py",
    "test_baselines.py",
    "test_interrupts.py",
    "test_sequence_command.py",
    "test_objects_command.py",
    "test_progress.py",
    "test_photometric_normals.py",
    "test_blocks_training.py",
)
"""Files of tests that take half a minute or more. They run first: otherwise one worker of pytest-xdist is idle at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
