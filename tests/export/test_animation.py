# SPDX-License-Identifier: Apache-2.0
"""Animated glTF files of sequences."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from helpers.gltf import validated_messages

from pmni_nerfstudio.export.animation import write_animated_glb

RATE = 10.0
OFFSET = np.array([500_000.0, -3.0, 7.0])


@pytest.fixture(scope="module")
def glb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three moments of a ball that grows, far from the origin."""
    meshes = {}
    for i, name in enumerate(("0003", "0004", "0007")):
        mesh = trimesh.creation.icosphere(subdivisions=1 + i, radius=1.0 + i)
        meshes[name] = mesh.apply_translation(OFFSET)
    path = tmp_path_factory.mktemp("animation") / "sequence.glb"
    write_animated_glb(path, meshes, RATE)
    return path


def contents(path: Path) -> tuple[dict[str, Any], bytes]:
    """JSON part and binary part."""
    data = path.read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def values(tree: dict[str, Any], binary: bytes, accessor: int) -> np.ndarray:
    entry = tree["accessors"][accessor]
    view = tree["bufferViews"][entry["bufferView"]]
    width = {"SCALAR": 1, "VEC3": 3}[entry["type"]]
    flat = np.frombuffer(binary, "<f4", entry["count"] * width, view["byteOffset"])
    return flat.reshape(-1, width)


def test_one_moment_is_shown_at_each_time(glb: Path):
    tree, binary = contents(glb)
    (animation,) = tree["animations"]
    shown = {}
    for channel in animation["channels"]:
        assert channel["target"]["path"] == "scale"
        sampler = animation["samplers"][channel["sampler"]]
        assert sampler["interpolation"] == "STEP"
        times = values(tree, binary, sampler["input"])[:, 0]
        scales = values(tree, binary, sampler["output"])
        assert (np.diff(times) > 0).all() and times[0] == 0 and times[-1] == pytest.approx(3 / RATE)
        name = tree["nodes"][channel["target"]["node"]]["name"]
        shown[name] = lambda t, times=times, scales=scales: scales[np.searchsorted(times, t, side="right") - 1]
    for i, name in enumerate(("0003", "0004", "0007")):
        at = (i + 0.5) / RATE
        assert {other: scale(at).tolist() for other, scale in shown.items()} == {
            other: [float(other == name)] * 3 for other in shown
        }


def test_readers_without_animations_show_the_first_moment(glb: Path):
    nodes = contents(glb)[0]["nodes"]
    assert [node["scale"] for node in nodes[:3]] == [[1.0] * 3, [0.0] * 3, [0.0] * 3]


def test_meshes_keep_their_place_and_precision(glb: Path):
    tree, binary = contents(glb)
    root = tree["nodes"][tree["scenes"][0]["nodes"][0]]
    positions = values(tree, binary, tree["meshes"][2]["primitives"][0]["attributes"]["POSITION"])
    distance = np.linalg.norm(positions + np.array(root["translation"]) - OFFSET, axis=1)
    assert np.abs(distance - 3.0).max() < 1e-4


def test_the_validator_finds_nothing_in_an_animation(glb: Path):
    validated_messages(glb)
