# SPDX-License-Identifier: Apache-2.0
"""`pmni view` of a sequence: the slider chooses the frame, and all frames keep their place and scale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
import viser
from helpers.serving import free_port

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.stored_sequence import read_sequence
from pmni_nerfstudio.viewer import sequence_page
from pmni_nerfstudio.viewer.sequence_page import SequencePage
from pmni_nerfstudio.viewer.view import RADIUS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three frames: a ball, one that failed, and a ball twice as large beside it."""
    (tmp_path / "meshes").mkdir()
    ball = trimesh.creation.icosphere(subdivisions=2, radius=3.0)
    ball.export(tmp_path / "meshes" / "0001.ply")
    ball.apply_scale(2.0).apply_translation([6, 0, 0]).export(tmp_path / "meshes" / "0003.ply")
    frames = [
        {"frame": "0001", "verdict": "ok", "error": None, "mesh": "meshes/0001.ply"},
        {"frame": "0002", "verdict": "failed", "error": "no mask"},
        {"frame": "0003", "verdict": "doubtful", "error": None, "mesh": "meshes/0003.ply"},
    ]
    c2w = np.tile(np.eye(4), (2, 1, 1))
    c2w[:, 2, 3] = -40
    (tmp_path / "sequence.json").write_text(json.dumps({"frames": frames, "c2w": c2w.tolist()}))
    return tmp_path


@pytest.fixture
def server() -> Iterator[viser.ViserServer]:
    server = viser.ViserServer(host="127.0.0.1", port=free_port(), verbose=False)
    yield server
    server.stop()


def test_the_slider_shows_the_frames_that_have_a_mesh(
    folder: Path, server: viser.ViserServer, monkeypatch: pytest.MonkeyPatch
):
    shown: list[np.ndarray] = []
    monkeypatch.setattr(sequence_page, "show_mesh", lambda _, vertices, faces: shown.append(vertices))
    page = SequencePage(server, read_sequence(folder), "title")
    assert "0001" in page.label.content and "ok" in page.label.content
    page.slider.value = 1
    page.draw()
    assert "0003" in page.label.content and "doubtful" in page.label.content
    first, second = shown[0], shown[-1]
    assert np.abs(np.linalg.norm(first, axis=1) - RADIUS).max() < 1e-3
    # In the scale of the first frame.
    assert np.abs(np.linalg.norm(second - [2 * RADIUS, 0, 0], axis=1) - 2 * RADIUS).max() < 1e-3


@pytest.mark.parametrize(
    ("contents", "named"),
    [
        ("{}", "does not hold a sequence"),
        ('{"frames": [{"frame": "0", "verdict": "failed", "error": "x"}], "c2w": []}', "no frame has a mesh"),
        ('{"frames": [{"frame": "0", "verdict": "ok", "error": null}], "c2w": []}', "does not hold a sequence"),
    ],
)
def test_damaged_results_are_reported(tmp_path: Path, contents: str, named: str):
    (tmp_path / "sequence.json").write_text(contents)
    with pytest.raises(PmniError, match=named):
        read_sequence(tmp_path)
