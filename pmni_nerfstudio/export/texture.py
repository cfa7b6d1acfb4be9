# SPDX-License-Identifier: Apache-2.0
"""Surface colors from photographs: at points of a mesh, and as a texture image.

The color of a point is the mean over the views that see it, weighted by the cosine between its normal and the direction
to the camera. A view sees a point if the point is visible along its ray (ray casting with Embree), at a viewing angle
that is not grazing, and away from silhouette edges, where pixels mix two colors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import trimesh
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track
from scipy.ndimage import map_coordinates
from scipy.spatial import KDTree
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from pmni_nerfstudio.data.resample import resample_intrinsics, resample_mask
from pmni_nerfstudio.data.scene import IMAGES, Scene
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.export.atlas import unwrap
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.visibility import depth_tolerance, seen_points

_FILL_CELL = 0.01
"""Side of the cells of unseen points that get one color, relative to the mesh's diagonal."""


class Photograph(NamedTuple):
    """A photograph and its camera."""

    image: UInt8[np.ndarray, "H W 3"]
    """RGB image."""
    mask: Bool[np.ndarray, "H W"]
    """Object mask."""
    K: Float[np.ndarray, "3 3"]
    """Intrinsics in pixels of this image, pixel centers at integers."""
    c2w: Float[np.ndarray, "4 4"]
    """Pose in the world of the mesh, OpenCV axes."""


def read_photographs(scene: Scene, c2w: Float[np.ndarray, "n 4 4"], progress: bool = True) -> Iterator[Photograph]:
    """Read a scene's photographs one at a time, because all of them may not fit into memory.

    Photographs may have another resolution than the maps but must show the same field of view.

    Args:
        scene: scene at the resolution of its files (`read_scene` without scale_factor).
        c2w: poses of all views in the world of the mesh, OpenCV axes.
        progress: whether to show a progress bar.

    Raises:
        SceneError: a photograph is missing, cannot be read, or has another aspect ratio than the maps.
    """
    if scene.image_files is None:
        raise SceneError(f"{scene.root / IMAGES}: is missing or lacks a view; put a photograph of each view there")
    files: Sequence[Path] = scene.image_files
    console = Console(stderr=True)
    for i in track(range(len(files)), "Photographs", console=console, transient=True, disable=not progress):
        bgr = cv2.imread(str(files[i]), cv2.IMREAD_COLOR)
        if bgr is None:
            raise SceneError(f"{files[i]}: can't be read as a photograph; save it as PNG or JPEG of 8 or 16 bits")
        height, width = bgr.shape[:2]
        if abs(width / scene.width * scene.height / height - 1) > 0.01:
            raise SceneError(
                f"{files[i]}: {width}x{height} has another aspect ratio than the maps, {scene.width}x{scene.height}; "
                "crop it to the field of view of the maps"
            )
        K = resample_intrinsics(scene.K[i], (scene.width, scene.height), (width, height))
        mask = resample_mask(scene.masks[i], (width, height))
        yield Photograph(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), mask, K, c2w[i])


def surface_colors(
    mesh: trimesh.Trimesh,
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    photographs: Iterable[Photograph],
) -> tuple[UInt8[np.ndarray, "P 3"], Bool[np.ndarray, "P"]]:
    """Colors of points on a mesh.

    Args:
        mesh: mesh that determines the visibility of the points.
        points: points on the mesh.
        normals: unit outward normals at the points.
        photographs: photographs of the mesh.

    Returns:
        RGB colors, and whether any view sees each point. Points that no view sees get the color of a point nearby that is
        seen.

    Raises:
        PmniError: no photograph sees any of the points.
    """
    rays = RayCaster(mesh)
    tolerance = depth_tolerance(mesh)
    total, weights = np.zeros((len(points), 3)), np.zeros(len(points))
    for photograph in photographs:
        camera = photograph.mask, photograph.K, photograph.c2w
        index, pixels, cosine = seen_points(points, normals, *camera, rays, tolerance)
        for channel in range(3):
            values = map_coordinates(photograph.image[..., channel], pixels, output=np.float64, order=1, mode="nearest")
            total[index, channel] += cosine * values
        weights[index] += cosine
    seen = weights > 0
    if not seen.any():
        raise PmniError("no photograph sees the surface; give a mesh and poses of this scene, in the same world")
    total[seen] /= weights[seen, None]
    if not seen.all():
        # Unseen points lie in patches far from all seen points, where a search for each took four fifths of the time.
        cell = _FILL_CELL * np.linalg.norm(mesh.extents)
        cells, member = np.unique(np.round(points[~seen] / cell), axis=0, return_inverse=True)
        nearest = np.asarray(KDTree(points[seen]).query(cell * cells)[1])
        total[~seen] = total[seen][nearest[member.reshape(-1)]]
    return np.round(total).clip(0, 255).astype(np.uint8), seen


def texture_mesh(mesh: trimesh.Trimesh, photographs: Iterable[Photograph], size: int = 1024) -> trimesh.Trimesh:
    """Unwrap a mesh with xatlas and give it a texture image; vertices are duplicated along the seams of the charts.

    Args:
        mesh: mesh to texture; unwrapping takes seconds for ten thousand faces.
        photographs: photographs of the mesh.
        size: side length of the texture in pixels.

    Raises:
        PmniError: no photograph sees the mesh.
    """
    atlas = unwrap(mesh, size)
    unwrapped = atlas.mesh
    normals = atlas.interpolate(unwrapped.vertex_normals)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    colors, _ = surface_colors(mesh, atlas.interpolate(unwrapped.vertices), normals, photographs)
    texture = Image.fromarray(atlas.image(colors))
    material = PBRMaterial(baseColorTexture=texture, metallicFactor=0.0, roughnessFactor=1.0)
    unwrapped.visual = TextureVisuals(uv=atlas.uv, material=material)
    return unwrapped
