# SPDX-License-Identifier: Apache-2.0
"""GLB files, read independently of what writes them."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image


class Glb:
    """A GLB file, read by the glTF specification."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        magic, number, length, json_length, kind = struct.unpack("<4sIII4s", data[:20])
        assert (magic, number, length, kind) == (b"glTF", 2, len(data), b"JSON")
        self.tree: dict[str, Any] = json.loads(data[20 : 20 + json_length])
        binary_length, kind = struct.unpack("<I4s", data[20 + json_length : 28 + json_length])
        assert kind == b"BIN\0" and 28 + json_length + binary_length == length
        assert json_length % 4 == 0 and binary_length % 4 == 0
        self._binary = data[28 + json_length :]
        assert self.tree["buffers"][0]["byteLength"] == binary_length
        self.primitive = self.tree["meshes"][0]["primitives"][0]
        self.material = self.tree["materials"][0]
        self.positions, self.normals, self.tangents, self.uv = (
            self.accessor(self.primitive["attributes"][name])
            for name in ("POSITION", "NORMAL", "TANGENT", "TEXCOORD_0")
        )
        self.faces = self.accessor(self.primitive["indices"]).reshape(-1, 3)

    def accessor(self, index: int) -> np.ndarray:
        found = self.tree["accessors"][index]
        kind = {5126: "<f4", 5125: "<u4"}[found["componentType"]]
        columns = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[found["type"]]
        return np.frombuffer(self._view(found["bufferView"]), kind).reshape(found["count"], columns)

    def texture(self, owner: dict[str, Any], key: str) -> np.ndarray:
        image = self.tree["images"][self.tree["textures"][owner[key]["index"]]["source"]]
        return np.asarray(Image.open(BytesIO(self._view(image["bufferView"]))).convert("RGB")).astype(float)

    def _view(self, index: int) -> bytes:
        view = self.tree["bufferViews"][index]
        assert view["byteOffset"] % 4 == 0
        return self._binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]

    def mesh(self) -> trimesh.Trimesh:
        return trimesh.Trimesh(self.positions.astype(float), self.faces, process=False)


def validated_messages(path: Path) -> list[dict[str, Any]]:
    """Messages of Khronos' validator on a GLB file, which must not hold errors or warnings.

    Needs Node.js and the npm package gltf-validator, in NODE_PATH or in a node_modules folder above this one; skips the
    test without them.
    """
    script = (
        "const file = process.argv[1]; require('gltf-validator')"
        ".validateBytes(new Uint8Array(require('fs').readFileSync(file)), {maxIssues: 10})"
        ".then(report => console.log(JSON.stringify(report.issues)))"
    )
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    command = ["node", "-e", script, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=60, check=False)
    if "Cannot find module 'gltf-validator'" in ended.stderr:
        pytest.skip("gltf-validator is not installed")
    issues = json.loads(ended.stdout)
    assert issues["numErrors"] == 0 and issues["numWarnings"] == 0, issues["messages"]
    return issues["messages"]
