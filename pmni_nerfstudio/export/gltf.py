# SPDX-License-Identifier: Apache-2.0
"""Binary glTF 2.0 files of a textured mesh with tangents, which trimesh does not write, in one or several levels of detail.

Levels of detail are those of the extension MSFT_lod: the finest level is a node of the scene, which lists the others.
Readers without the extension that draw the scene's nodes, as three.js, show the finest level; as nodes of the scene, all
levels would be drawn over each other. Blender imports every node, as an object of its own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from pmni_nerfstudio.data.atomic import atomic_path

_SPECULAR = "KHR_materials_specular"
_FLOAT, _UINT = 5126, 5125
_VERTICES, _INDICES = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071


@dataclass(frozen=True, eq=False)
class GltfMesh:
    """Geometry of a glTF file: meters, y up, right-handed."""

    positions: Float[np.ndarray, "V 3"]
    normals: Float[np.ndarray, "V 3"]
    tangents: Float[np.ndarray, "V 4"]
    """Unit tangents, and the sign s of the bitangent s * normal x tangent."""
    uv: Float[np.ndarray, "V 2"]
    """Texture coordinates from the lower left corner; the file has them from the upper left one."""
    faces: Int[np.ndarray, "F 3"]
    translation: Sequence[float] = (0.0, 0.0, 0.0)
    """Position of the mesh's origin; files have single precision, which does not resolve objects far from it."""


@dataclass(frozen=True)
class Reflectance:
    """Factors of the metallic-roughness material and of KHR_materials_specular; by default, a rough dielectric."""

    roughness: float = 0.8
    metallic: float = 0.0
    specular: float = 1.0
    """Factor on the reflectance of 0.04 of dielectrics at normal incidence."""


@dataclass(frozen=True)
class GltfMaterial:
    """Material. Textures are encoded as PNG or JPEG."""

    normal: bytes
    """Normal map in tangent space, y upwards."""
    base_color: bytes | None = None
    """Base color, sRGB; None: light gray."""
    occlusion: bytes | None = None
    """Share of ambient light that arrives, linear."""
    reflectance: Reflectance = Reflectance()


def encoded_image(image: UInt8[np.ndarray, "H W C"], jpeg_quality: int | None = None) -> bytes:
    """An RGB or gray image as PNG, or as JPEG without chroma subsampling."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 6]
    if jpeg_quality is not None:
        sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
        options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality, *sampling]
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[2] == 3 else image
    return cv2.imencode(".png" if jpeg_quality is None else ".jpg", stored, options)[1].tobytes()


@dataclass(frozen=True, eq=False)
class GltfLevel:
    """A level of detail."""

    name: str
    """Name of the mesh and its node."""
    mesh: GltfMesh
    material: GltfMaterial


def write_glb(path: Path, levels: Sequence[GltfLevel], extras: dict[str, Any], coverage: Sequence[float] = ()) -> None:
    """Write one mesh in one or several levels of detail, with their textures.

    Args:
        path: .glb file.
        levels: levels of detail, the finest first.
        extras: facts for readers of the file, stored with the asset's version.
        coverage: share of the screen down to which each level is to be shown; of use with several levels only.

    Raises:
        PmniError: The file can't be written.
    """
    buffer = Buffer()
    tree: dict[str, Any] = {
        "asset": {"extras": extras},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        **{key: [] for key in ("nodes", "meshes", "materials", "textures", "images")},
        "samplers": [
            {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP},
        ],
    }
    for level in levels:
        _add_level(tree, buffer, level)
    if len(levels) > 1:
        tree["extensionsUsed"] = ["MSFT_lod"]
        tree["nodes"][0] |= {
            "extensions": {"MSFT_lod": {"ids": list(range(1, len(levels)))}},
            "extras": {"MSFT_screencoverage": list(coverage)},
        }
    if any("extensions" in material for material in tree["materials"]):
        tree.setdefault("extensionsUsed", []).append(_SPECULAR)
    write_tree(path, tree, buffer)


def write_tree(path: Path, tree: dict[str, Any], buffer: Buffer) -> None:
    """Write a glTF tree with the buffer that its accessors and images refer to, atomically; completes the tree.

    Raises:
        PmniError: The file can't be written.
    """
    generator = f"pmni-nerfstudio {version('pmni-nerfstudio')}"
    tree["asset"] = {"version": "2.0", "generator": generator, **tree.get("asset", {})}
    tree |= {"accessors": buffer.accessors, "bufferViews": buffer.views}
    tree["buffers"] = [{"byteLength": len(buffer.content)}]
    with atomic_path(path) as temporary:
        temporary.write_bytes(_glb(tree, bytes(buffer.content)))


def _add_level(tree: dict[str, Any], buffer: Buffer, level: GltfLevel) -> None:
    """Append a node with its mesh, material and textures."""
    mesh, material = level.mesh, level.material
    attributes = {
        "POSITION": buffer.add_vertices(mesh.positions, bounds=True),
        "NORMAL": buffer.add_vertices(mesh.normals),
        "TANGENT": buffer.add_vertices(mesh.tangents),
        "TEXCOORD_0": buffer.add_vertices(np.column_stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]])),
    }
    indices = buffer.add_indices(mesh.faces)
    factors = material.reflectance
    pbr: dict[str, Any] = {"metallicFactor": factors.metallic, "roughnessFactor": factors.roughness}
    description: dict[str, Any] = {"name": level.name, "pbrMetallicRoughness": pbr}
    if factors.specular != 1:
        description["extensions"] = {_SPECULAR: {"specularFactor": factors.specular}}
    if material.base_color is None:
        pbr["baseColorFactor"] = [0.8, 0.8, 0.8, 1.0]
    textures = (
        (pbr, "baseColorTexture", material.base_color),
        (description, "normalTexture", material.normal),
        (description, "occlusionTexture", material.occlusion),
    )
    for owner, key, image in textures:
        if image is not None:
            owner[key] = {"index": len(tree["textures"])}
            tree["textures"].append({"source": len(tree["images"]), "sampler": 0})
            mime = "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"
            name = f"{level.name} {key}"
            tree["images"].append({"name": name, "mimeType": mime, "bufferView": buffer.add(image)})
    node: dict[str, Any] = {"name": level.name, "mesh": len(tree["meshes"])}
    if any(mesh.translation):
        node["translation"] = [float(value) for value in mesh.translation]
    primitive = {"attributes": attributes, "indices": indices, "material": len(tree["materials"])}
    tree["nodes"].append(node)
    tree["meshes"].append({"name": level.name, "primitives": [primitive]})
    tree["materials"].append(description)


@dataclass
class Buffer:
    """Binary part of a file, and what describes it."""

    content: bytearray = field(default_factory=bytearray)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, data: bytes, target: int | None = None) -> int:
        """Append bytes as a buffer view, and return its index."""
        view = {"buffer": 0, "byteOffset": len(self.content), "byteLength": len(data)}
        self.views.append(view if target is None else view | {"target": target})
        self.content += data + bytes(-len(data) % 4)
        return len(self.views) - 1

    def add_vertices(self, values: np.ndarray, bounds: bool = False) -> int:
        """Append an attribute (V, C) in single precision, and return the index of its accessor."""
        stored = np.ascontiguousarray(values, dtype="<f4")
        accessor = {"componentType": _FLOAT, "count": len(stored), "type": f"VEC{stored.shape[1]}"}
        if bounds:
            accessor |= {"min": stored.min(axis=0).tolist(), "max": stored.max(axis=0).tolist()}
        return self._add_accessor(stored.tobytes(), _VERTICES, accessor)

    def add_indices(self, faces: np.ndarray) -> int:
        """Append the vertices of the faces, and return the index of the accessor."""
        accessor = {"componentType": _UINT, "count": faces.size, "type": "SCALAR"}
        return self._add_accessor(np.ascontiguousarray(faces, dtype="<u4").tobytes(), _INDICES, accessor)

    def add_values(self, values: np.ndarray) -> int:
        """Append values (N, C) of an animation in single precision, and return the index of their accessor."""
        stored = np.ascontiguousarray(values, dtype="<f4")
        accessor = {"componentType": _FLOAT, "count": len(stored), "type": f"VEC{stored.shape[1]}"}
        return self._add_accessor(stored.tobytes(), None, accessor)

    def add_times(self, times: np.ndarray) -> int:
        """Append increasing times (N,) of an animation, in seconds, and return the index of their accessor."""
        stored = np.ascontiguousarray(times, dtype="<f4")
        accessor = {"componentType": _FLOAT, "count": len(stored), "type": "SCALAR"}
        accessor |= {"min": [float(stored.min())], "max": [float(stored.max())]}
        return self._add_accessor(stored.tobytes(), None, accessor)

    def _add_accessor(self, data: bytes, target: int | None, accessor: dict[str, Any]) -> int:
        self.accessors.append({"bufferView": self.add(data, target), **accessor})
        return len(self.accessors) - 1


def _glb(tree: dict[str, Any], binary: bytes) -> bytes:
    """Header and the two chunks of a GLB file, each padded to a multiple of four bytes."""
    text = json.dumps(tree, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
