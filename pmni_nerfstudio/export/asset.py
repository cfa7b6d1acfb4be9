# SPDX-License-Identifier: Apache-2.0
"""A surface as glTF files for other programs: levels of detail with normal maps, colors and ambient occlusion."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.mesh_files import is_far_away
from pmni_nerfstudio.export.asset_frame import AssetFrame
from pmni_nerfstudio.export.atlas import Atlas, unwrap
from pmni_nerfstudio.export.baking import BakedDetails, ambient_occlusion
from pmni_nerfstudio.export.gltf import GltfMaterial, GltfMesh, encoded_image, write_glb
from pmni_nerfstudio.export.tangents import vertex_tangents
from pmni_nerfstudio.export.texture import Photograph, surface_colors
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.geometry.ray_casting import RayCaster

_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Level:
    """A level of detail that was written."""

    file: str
    """Name of the .glb file."""
    faces: int
    vertices: int
    """Number of vertices, with the copies along the seams of the atlas."""
    bytes: int
    seconds: float
    unseen: float | None
    """Share of the texels that no photograph sees, which have the color of the nearest point that is seen; None: no colors."""


@dataclass(frozen=True, eq=False)
class AssetSource:
    """Source of the levels of detail: the full mesh, the frame of the files, and photographs if there are any."""

    mesh: trimesh.Trimesh
    """Full mesh, in the data's world and units."""
    frame: AssetFrame
    photographs: Callable[[], Iterable[Photograph]] | None
    """Reads the photographs of the object, once for each level; None: there are none."""


def write_levels(
    folder: Path, source: AssetSource, faces: Sequence[int], size: int, occlusion: bool
) -> Iterator[Level]:
    """Write mesh_N.glb for each number of faces N, the largest first; levels above the full mesh have its faces.

    Where photographs do not see the surface, mesh_N_unseen.png has white texels.

    Args:
        folder: existing folder.
        source: what the levels are made of.
        faces: numbers of faces.
        size: side length of the textures in texels.
        occlusion: whether to bake ambient occlusion.

    Yields:
        The levels, each when it is complete.

    Raises:
        PmniError: A file can't be written, or no photograph sees the mesh.
    """
    start = time.perf_counter()
    full = source.mesh
    rays = RayCaster(full)
    ambient = ambient_occlusion(full, rays) if occlusion else None
    simplified = full
    for count in sorted({min(count, len(full.faces)) for count in faces}, reverse=True):
        # Each from the one before, because the time depends on the faces that are removed.
        simplified = _without_degenerate_faces(simplify(simplified, count))
        file = folder / f"mesh_{count}.glb"
        atlas, tangents = _unwrapped(simplified, size, rays, full)
        baked = BakedDetails(atlas, full, rays, tangents)
        color, unseen = _base_color(source, atlas, baked, file)
        material = GltfMaterial(
            normal=encoded_image(atlas.image(baked.normal_map)),
            base_color=color,
            occlusion=None if ambient is None else _occlusion_image(atlas, baked.interpolate(ambient[:, None])),
        )
        extras = _extras(source.frame)
        write_glb(file, file.stem, _in_gltf_axes(atlas, tangents, source.frame), material, extras)
        now = time.perf_counter()
        vertices = len(atlas.mesh.vertices)
        yield Level(file.name, len(atlas.mesh.faces), vertices, file.stat().st_size, now - start, unseen)
        start = time.perf_counter()


def frame_record(frame: AssetFrame) -> dict[str, Any]:
    """Units and axes of the files, for asset.json."""
    return {
        "units": frame.units,
        "scale_known": frame.meters is not None,
        "meters_per_unit": frame.scale,
        "up": frame.up.tolist(),
        "up_from": frame.up_from,
        "file_axes": "y up, right-handed, meters" if frame.meters is not None else "y up, right-handed, data's units",
        "file_from_data": (frame.scale * frame.rotation).tolist(),
    }


def _extras(frame: AssetFrame) -> dict[str, Any]:
    record = frame_record(frame)
    return {key: record[key] for key in ("units", "scale_known", "meters_per_unit", "up")}


def _without_degenerate_faces(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh without faces of no area and without unused vertices, neither of which has a normal."""
    kept = np.asarray(mesh.area_faces) > 0
    used, faces = np.unique(mesh.faces[kept], return_inverse=True)
    return trimesh.Trimesh(mesh.vertices[used], faces.reshape(-1, 3), process=False)


def _unwrapped(mesh: trimesh.Trimesh, size: int, rays: RayCaster, full: trimesh.Trimesh) -> tuple[Atlas, np.ndarray]:
    """Atlas of a mesh and the tangents (V, 4) of its vertices."""
    normals = np.array(mesh.vertex_normals)
    lost = np.linalg.norm(normals, axis=1) < 0.5
    if lost.any():  # faces that fold back onto each other cancel
        normals[lost] = full.face_normals[rays.closest_hits(mesh.vertices[lost]).face]
    mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=normals, process=False)
    atlas = unwrap(mesh, size)
    return atlas, vertex_tangents(atlas.mesh, atlas.uv)


def _base_color(
    source: AssetSource, atlas: Atlas, baked: BakedDetails, file: Path
) -> tuple[bytes | None, float | None]:
    """Base color as JPEG and the share of texels that no photograph sees; None without photographs."""
    if source.photographs is None:
        return None, None
    full = source.mesh
    points, normals = (baked.interpolate(np.asarray(values)) for values in (full.vertices, full.vertex_normals))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    colors, seen = surface_colors(full, points, normals, source.photographs())
    if not seen.all():
        unseen = np.zeros((*atlas.covered.shape, 1), dtype=np.uint8)
        unseen[atlas.covered] = 255 * ~seen[:, None]
        with atomic_path(file.with_name(f"{file.stem}_unseen.png")) as temporary:
            temporary.write_bytes(encoded_image(unseen))
    return encoded_image(atlas.image(colors), _JPEG_QUALITY), float(1 - seen.mean())


def _occlusion_image(atlas: Atlas, values: np.ndarray) -> bytes:
    gray = np.round(255 * values).clip(0, 255).astype(np.uint8)
    return encoded_image(np.repeat(atlas.image(gray), 3, axis=2), _JPEG_QUALITY)


def _in_gltf_axes(atlas: Atlas, tangents: np.ndarray, frame: AssetFrame) -> GltfMesh:
    """A level in the frame of glTF files; far from the origin, its position is that of the node."""
    rotation, vertices = frame.rotation, np.asarray(atlas.mesh.vertices)
    center = vertices.mean(axis=0) if is_far_away(vertices) else np.zeros(3)
    return GltfMesh(
        positions=frame.scale * (vertices - center) @ rotation.T,
        normals=np.asarray(atlas.mesh.vertex_normals) @ rotation.T,
        tangents=np.column_stack([tangents[:, :3] @ rotation.T, tangents[:, 3]]),
        uv=atlas.uv,
        faces=np.asarray(atlas.mesh.faces),
        translation=tuple(frame.scale * rotation @ center),
    )
