# SPDX-License-Identifier: Apache-2.0
"""A surface as glTF, OBJ and STL files: levels of detail with normal maps, colors and ambient occlusion."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import trimesh
from jaxtyping import Float

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.mesh_files import is_far_away
from pmni_nerfstudio.data.result_files import write_mesh
from pmni_nerfstudio.export.asset_frame import AssetFrame
from pmni_nerfstudio.export.atlas import Atlas, unwrap
from pmni_nerfstudio.export.baking import BakedDetails, ambient_occlusion
from pmni_nerfstudio.export.gltf import GltfLevel, GltfMaterial, GltfMesh, Reflectance, encoded_image, write_glb
from pmni_nerfstudio.export.obj import write_obj
from pmni_nerfstudio.export.photographs import Photograph, srgb_from_linear
from pmni_nerfstudio.export.tangents import vertex_tangents
from pmni_nerfstudio.export.texture import ColorTexture, surface_colors
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.geometry.ray_casting import RayCaster

Format = Literal["glb", "obj", "stl"]
LOD_FILE = "mesh_lod.glb"
"""Name of the file with all levels."""
_JPEG_QUALITY = 90
_SAMPLES = 20_000
"""Points on both meshes from which distances are measured."""
_PIXELS_PER_FACE = 40
_OCCLUSION_FACES = 80_000
"""Faces that resolve ambient occlusion, which is smooth."""


@dataclass(frozen=True)
class Level:
    """A level of detail that was written."""

    name: str
    """Name of the files without suffix, of the node and of the mesh."""
    faces: int
    vertices: int
    """Number of vertices, with the copies along the seams of the atlas."""
    mean_distance: float
    """Mean distance from the level to the full mesh and back, in the data's units."""
    max_distance: float
    files: tuple[str, ...]
    bytes: int
    """Size of all files."""
    seconds: float
    unseen: float | None
    """Share of the texels that no view sees, which have the colors of points nearby that are seen; None: no colors."""


@dataclass(frozen=True, eq=False)
class AssetSource:
    """Source of the levels of detail: the full mesh, the frame of the files, and photographs if there are any."""

    mesh: trimesh.Trimesh
    """Full mesh, in the data's world and units."""
    frame: AssetFrame
    photographs: Callable[[], Iterable[Photograph]] | None
    """Reads the photographs of the object, which happens once; None: there are none."""
    reflectance: Reflectance = Reflectance()
    """Roughness, metallic and specular factors of the material."""


@dataclass(frozen=True)
class AssetOptions:
    """Levels of detail, textures and file formats that an `AssetWriter` writes."""

    faces: Sequence[int]
    """Numbers of faces of the levels."""
    size: int
    """Side length of the textures in texels."""
    occlusion: bool
    """Whether to bake ambient occlusion."""
    formats: Sequence[Format] = ("glb",)


class AssetWriter:
    """Writes mesh_N.* for each number of faces N, and mesh_lod.glb with all levels."""

    def __init__(self, folder: Path, source: AssetSource, options: AssetOptions) -> None:
        """Prepare to write.

        Args:
            folder: existing folder.
            source: what the levels are made of.
            options: what to write.
        """
        self._folder, self._source, self._options = folder, source, options
        self._rays = RayCaster(source.mesh)
        self._colors: ColorTexture | None = None
        self._gltf: list[GltfLevel] = []
        self.too_bright = 0.0
        """Share of the surface brighter than white, where the base color is clipped."""

    def levels(self) -> Iterator[Level]:
        """Write the levels, the largest first; levels above the full mesh have its faces.

        Where no view sees the surface, mesh_N_unseen.png has white texels.

        Yields:
            The levels, each when it is complete.

        Raises:
            PmniError: A file can't be written, or no photograph sees the mesh.
        """
        start = time.perf_counter()
        full = self._source.mesh
        ambient = None
        samples = np.asarray(full.sample(_SAMPLES, seed=0))
        simplified = full
        for count in sorted({min(count, len(full.faces)) for count in self._options.faces}, reverse=True):
            # Each from the one before, because the time depends on the faces that are removed.
            simplified = _without_degenerate_faces(simplify(simplified, count))
            if self._options.occlusion and ambient is None:
                ambient = self._ambient_occlusion(simplified)
            name = f"mesh_{count}"
            atlas, tangents = _unwrapped(simplified, self._options.size, self._rays, full)
            baked = BakedDetails(atlas, full, self._rays, tangents)
            color, unseen, files = self._base_color(atlas, baked, name)
            material = GltfMaterial(
                normal=encoded_image(atlas.image(baked.normal_map)),
                base_color=color,
                occlusion=None if ambient is None else _occlusion_image(atlas, baked.interpolate(ambient[:, None])),
                reflectance=self._source.reflectance,
            )
            files += self._write(name, atlas, tangents, material)
            distances = self._rays.distance(np.asarray(simplified.sample(_SAMPLES, seed=0)))
            back = RayCaster(simplified).distance(samples)
            now = time.perf_counter()
            yield Level(
                name=name,
                faces=len(atlas.mesh.faces),
                vertices=len(atlas.mesh.vertices),
                mean_distance=float(distances.mean() + back.mean()) / 2,
                max_distance=float(max(distances.max(), back.max())),
                files=tuple(file.name for file in files),
                bytes=sum(file.stat().st_size for file in files),
                seconds=now - start,
                unseen=unseen,
            )
            start = time.perf_counter()

    def write_all_in_one(self) -> Path | None:
        """Write mesh_lod.glb with the levels written before; None if there are fewer than two, or glb is not wanted.

        Raises:
            PmniError: The file can't be written.
        """
        if len(self._gltf) < 2:
            return None
        path = self._folder / LOD_FILE
        faces = [len(level.mesh.faces) for level in self._gltf]
        write_glb(path, self._gltf, _extras(self._source.frame), screen_coverage(faces))
        return path

    def _ambient_occlusion(self, finest: trimesh.Trimesh) -> Float[np.ndarray, " V"]:
        """Ambient occlusion at the full mesh's vertices, computed on the finest level if that has enough faces."""
        full = self._source.mesh
        if len(finest.faces) < _OCCLUSION_FACES or finest is full:
            return ambient_occlusion(full, self._rays)
        rays = RayCaster(finest)
        hits = rays.closest_hits(np.asarray(full.vertices))
        values = ambient_occlusion(finest, rays)[:, None]
        return hits.interpolate(np.ones(len(hits.face), dtype=bool), np.asarray(finest.faces), values)[:, 0]

    def _base_color(
        self, atlas: Atlas, baked: BakedDetails, name: str
    ) -> tuple[bytes | None, float | None, list[Path]]:
        """Base color as JPEG, the share of texels that no view sees, and the file that marks them."""
        if self._source.photographs is None:
            return None, None, []
        full = self._source.mesh
        points, normals = (baked.interpolate(np.asarray(values)) for values in (full.vertices, full.vertex_normals))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
        if self._colors is None:
            colors, seen = surface_colors(full, self._rays, points, normals, self._source.photographs())
            self._colors = ColorTexture(atlas, colors, seen)
            self.too_bright = float((colors[seen].max(axis=1) > 1).mean())
        else:
            colors, seen = self._colors.at(points, normals)
        files = []
        if not seen.all():
            unseen = np.zeros((*atlas.covered.shape, 1), dtype=np.uint8)
            unseen[atlas.covered] = 255 * ~seen[:, None]
            files.append(self._folder / f"{name}_unseen.png")
            with atomic_path(files[0]) as temporary:
                temporary.write_bytes(encoded_image(unseen))
        stored = np.round(255 * srgb_from_linear(colors)).astype(np.uint8)
        return encoded_image(atlas.image(stored), _JPEG_QUALITY), float(1 - seen.mean()), files

    def _write(self, name: str, atlas: Atlas, tangents: np.ndarray, material: GltfMaterial) -> list[Path]:
        """Write a level in all formats."""
        path, frame, formats = self._folder / name, self._source.frame, self._options.formats
        files = []
        if "glb" in formats:
            self._gltf.append(GltfLevel(name, _in_gltf_axes(atlas, tangents, frame), material))
            write_glb(path.with_suffix(".glb"), self._gltf[-1:], _extras(frame))
            files.append(path.with_suffix(".glb"))
        if "obj" in formats:
            files += write_obj(path.with_suffix(".obj"), atlas, material)
        if "stl" in formats:
            write_mesh(path.with_suffix(".stl"), atlas.mesh)
            files.append(path.with_suffix(".stl"))
        return files


def screen_coverage(faces: Sequence[int]) -> list[float]:
    """Share of the screen down to which each level of detail is to be shown, with the levels' numbers of faces.

    A level is shown until the next one has a face for every 40 pixels of the object on a screen of 1920x1080; half of the
    faces are turned away. Normal maps carry what is smaller. The last level is shown at any size.
    """
    return [min(1.0, count / 2 * _PIXELS_PER_FACE / (1920 * 1080)) for count in faces[1:]] + [0.0]


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
