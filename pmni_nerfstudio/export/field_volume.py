# SPDX-License-Identifier: Apache-2.0
"""The signed distance field near the surface as a small volume, from which pages render it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from torch import Tensor

from pmni_nerfstudio.chunks import chunks_within
from pmni_nerfstudio.data.npz import read_npz, write_npz
from pmni_nerfstudio.errors import PmniError

FIELD_FILE = "field_volume.npz"

BAND = 4.0
"""Largest stored distance from the surface, in voxels."""

_MARGIN = 5
"""Voxels around the surface: the band, and one more."""
_CHUNK = 1 << 17
_PROBES = 256
_MAX_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class FieldVolume:
    """Signed distances at the vertices of a grid around the surface, in voxels, limited to BAND and quantized."""

    values: UInt8[np.ndarray, "x y z"]
    """From 0 for -BAND to 255 for BAND."""
    world_from_voxel: Float[np.ndarray, "4 4"]
    """Similarity from indices of the grid to the data world."""


def sample_field(
    sdf: Callable[[Tensor], Tensor],
    mesh: trimesh.Trimesh,
    world_from_unit: Float[np.ndarray, "4 4"],
    *,
    resolution: int = 128,
    device: torch.device | str = "cpu",
    max_memory: int | None = None,
) -> FieldVolume:
    """Sample a field around its mesh; only voxels near the surface are evaluated.

    Args:
        sdf: (P, 3) float32 on `device` -> (P,) signed distance, negative inside, in the unit-sphere world.
        mesh: the field's surface in the same world.
        world_from_unit: similarity to the data world.
        resolution: grid vertices along the longest side of the mesh's bounding box, margins included.
        device: device of the points that `sdf` is called with.
        max_memory: bytes that one call may take, beyond what is already allocated; None for no limit.

    Raises:
        PmniError: memory does not suffice for the smallest chunk.
    """
    low, high = mesh.bounds
    voxel = float((high - low).max()) / (resolution - 1 - 2 * _MARGIN)
    origin = low - _MARGIN * voxel
    shape = np.ceil((high - low) / voxel).astype(int) + 1 + 2 * _MARGIN

    @torch.no_grad()
    def probe(count: int) -> None:
        sdf(torch.zeros(count, 3, device=device))

    chunks = chunks_within(max_memory, _CHUNK, "points", probe)

    @torch.no_grad()
    def distances(index: Int[np.ndarray, "p 3"]) -> Float[np.ndarray, "p"]:
        points = torch.from_numpy(origin + voxel * index).float()
        found: list[np.ndarray] = []
        start = 0
        while start < len(points):
            part = chunks.run(lambda size: sdf(points[start : start + size].to(device)).cpu().numpy())
            found.append(part)
            start += len(part)
        return np.concatenate(found) / voxel

    near = _near_surface(mesh, origin, voxel, shape)
    volume = _signs_elsewhere(near, distances) * BAND
    volume[near] = distances(np.argwhere(near))
    world_from_voxel = np.eye(4)
    world_from_voxel[:3, :3] *= voxel
    world_from_voxel[:3, 3] = origin
    quantized = np.round((volume / BAND).clip(-1, 1) * 127.5 + 127.5).astype(np.uint8)
    return FieldVolume(quantized, world_from_unit @ world_from_voxel)


def _near_surface(
    mesh: trimesh.Trimesh, origin: Float[np.ndarray, "3"], voxel: float, shape: Int[np.ndarray, "3"]
) -> Bool[np.ndarray, "x y z"]:
    """Vertices of the grid within the band around the surface."""
    near = np.zeros(shape, dtype=bool)
    points = np.concatenate([mesh.vertices, mesh.triangles_center])
    near[tuple(np.round((points - origin) / voxel).astype(int).T)] = True
    return ndimage.binary_dilation(near, ndimage.generate_binary_structure(3, 3), iterations=_MARGIN)


def _signs_elsewhere(
    near: Bool[np.ndarray, "x y z"], distances: Callable[[Int[np.ndarray, "p 3"]], Float[np.ndarray, "p"]]
) -> Float[np.ndarray, "x y z"]:
    """1 outside and -1 inside, by regions that the band separates; a region has the sign of most of its probes.

    Floaters, which the mesh does not have, therefore do not appear.
    """
    regions, count = ndimage.label(~near)  # pyright: ignore[reportGeneralTypeIssues]
    signs = np.ones(near.shape)
    for region, part in enumerate(ndimage.find_objects(regions), start=1):
        members = np.argwhere(regions[part] == region) + [axis.start for axis in part]
        probes = members[np.linspace(0, len(members) - 1, min(_PROBES, len(members))).round().astype(int)]
        if np.median(distances(probes)) < 0:
            signs[part][regions[part] == region] = -1
    return signs


def write_field_volume(path: Path, volume: FieldVolume) -> None:
    """Write a volume, atomically.

    Raises:
        PmniError: the file cannot be written.
    """
    write_npz(path, {"values": volume.values, "world_from_voxel": volume.world_from_voxel})


def read_field_volume(path: Path) -> FieldVolume:
    """Read a volume.

    Raises:
        PmniError: the file is missing or invalid.
    """
    arrays = read_npz(path, ("values", "world_from_voxel").__contains__, _MAX_BYTES)
    values, matrix = arrays.get("values"), arrays.get("world_from_voxel")
    if (
        values is None
        or matrix is None
        or (values.ndim, values.dtype, matrix.shape) != (3, np.uint8, (4, 4))
        or matrix.dtype.kind != "f"
        or not np.isfinite(matrix).all()
    ):
        raise PmniError(f"{path}: has no volume of a field; evaluate again with pmni eval")
    return FieldVolume(values, matrix.astype(np.float64))
