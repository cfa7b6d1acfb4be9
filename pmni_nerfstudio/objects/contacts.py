# SPDX-License-Identifier: Apache-2.0
"""Contacts of objects: where two reconstructed solids overlap, and solids that don't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import scale_of, transform_points

_CHUNK = 1 << 17


@dataclass(frozen=True, eq=False)
class Solid:
    """A solid given by its signed distance in a unit sphere of its own."""

    sdf: Callable[[Tensor], Tensor]
    """(P, 3) float32 to (P,) signed distance, negative inside, both in the unit-sphere world; valid in [-1, 1]^3."""
    world_from_unit: Float[np.ndarray, "4 4"]
    """Similarity from the unit-sphere world to the world that all solids share."""
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Overlap:
    """Overlap of two meshes, in the units of their world."""

    vertices: int
    """Vertices of either mesh within the other one."""
    depth: float
    """Largest distance of such a vertex from the other surface; 0 if there is none."""


def separated_sdf(solids: Sequence[Solid], clearance: float) -> Callable[[Tensor], Tensor]:
    """Signed distance of the first of several solids, cut where others overlap it, half-way between the two surfaces.

    For signed distances f of the solid and g of another one, it is max(f, (f - g) / 2): in the overlap the surfaces of both
    become the one on which f = g, and elsewhere neither surface moves.

    Args:
        solids: the solid to cut, and the others.
        clearance: least distance of the cut solid from that middle surface, in units of the common world. Meshes of the
            solids, which follow a sharp rim of a cut only up to a fraction of their cells, then do not overlap either.

    Returns:
        Function in that solid's own unit-sphere world.
    """
    own = solids[0]
    scale = scale_of(own.world_from_unit)
    others = []
    for other in solids[1:]:
        matrix = torch.from_numpy(np.linalg.inv(other.world_from_unit) @ own.world_from_unit)
        others.append((other, matrix, scale_of(other.world_from_unit) / scale))

    def sdf(points: Tensor) -> Tensor:
        value = own.sdf(points)
        result = value
        for other, matrix, ratio in others:
            moved = points.double() @ matrix[:3, :3].T.to(points.device) + matrix[:3, 3].to(points.device)
            near = torch.nonzero((moved.norm(dim=-1) < 1) & (value < 0))[:, 0]
            if len(near):
                distance = ratio * other.sdf(moved[near].float().to(other.device)).to(value)
                cut = 0.5 * (value[near] - distance) + clearance / scale
                result = result.index_put((near,), torch.maximum(result[near], cut))
        return result

    return sdf


def inside(solid: Solid, points: Float[np.ndarray, "p 3"]) -> np.ndarray:
    """Whether points (P, 3) of the common world are inside a solid, (P,) bool."""
    unit = transform_points(np.linalg.inv(solid.world_from_unit), points)
    result = np.zeros(len(points), dtype=bool)
    near = np.flatnonzero((unit**2).sum(axis=1) < 1)
    with torch.no_grad():
        for part in np.array_split(near, max(1, -(-len(near) // _CHUNK))):
            values = solid.sdf(torch.from_numpy(unit[part]).float().to(solid.device))
            result[part] = (values < 0).cpu().numpy()
    return result


def boxes_meet(a: trimesh.Trimesh, b: trimesh.Trimesh) -> bool:
    """Whether the bounding boxes of two meshes touch or overlap."""
    return bool((a.bounds[0] <= b.bounds[1]).all() and (b.bounds[0] <= a.bounds[1]).all())


def overlap(a: trimesh.Trimesh, b: trimesh.Trimesh, in_a: Solid, in_b: Solid) -> Overlap:
    """Overlap of the surfaces of two solids.

    Args:
        a: mesh of the first solid, in the common world.
        b: mesh of the second one.
        in_a: the first solid, which decides what is inside.
        in_b: the second one.
    """
    if not boxes_meet(a, b):
        return Overlap(0, 0.0)
    count, depth = 0, 0.0
    for mesh, other, solid in ((a, b, in_b), (b, a, in_a)):
        deep = mesh.vertices[inside(solid, np.asarray(mesh.vertices))]
        if len(deep):
            count += len(deep)
            depth = max(depth, float(RayCaster(other).distance(deep).max()))
    return Overlap(count, depth)
