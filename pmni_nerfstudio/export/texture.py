# SPDX-License-Identifier: Apache-2.0
"""Colours from photographs onto a surface: for its points, and as a texture image.

A point's colour is the mean over the views that see it, weighted by the cosine between its normal and the way to the
camera. A view sees a point if its ray meets the surface there first (Embree), not too flat, and not beside an outline,
of the object or of a part before another, where pixels mix two colours.
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
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial import KDTree
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from pmni_nerfstudio.data.resample import resample_intrinsics, resample_mask
from pmni_nerfstudio.data.scene import IMAGES, Scene
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.visibility import depth_tolerance, seen_points


class Photograph(NamedTuple):
    """A photograph and the camera that took it."""

    image: UInt8[np.ndarray, "H W 3"]
    """RGB."""
    mask: Bool[np.ndarray, "H W"]
    """The object's."""
    K: Float[np.ndarray, "3 3"]
    """Of this image's pixels, centres at integers."""
    c2w: Float[np.ndarray, "4 4"]
    """Pose in the surface's world, OpenCV axes."""


def read_photographs(scene: Scene, poses: Float[np.ndarray, "N 4 4"], progress: bool = True) -> Iterator[Photograph]:
    """The scene's photographs, one at a time, since all of them may not fit into memory.

    They may be larger or smaller than the maps, and show the same frame.

    Args:
        scene: at its files' own size (`read_scene` with no scale_factor).
        poses: of its N views, in the world in which the surface will be.
        progress: show a progress bar.

    Raises:
        SceneError: the scene has no photographs, or one can't be read or is of another frame.
    """
    if scene.image_files is None:
        raise SceneError(f"{scene.root / IMAGES}: is missing or lacks a view: put a photograph of each view there")
    files: Sequence[Path] = scene.image_files
    console = Console(stderr=True)
    for i in track(range(len(files)), "Photographs", console=console, transient=True, disable=not progress):
        bgr = cv2.imread(str(files[i]), cv2.IMREAD_COLOR)
        if bgr is None:
            raise SceneError(f"{files[i]}: can't be read as a photograph: save it as PNG or JPEG of 8 or 16 bits")
        height, width = bgr.shape[:2]
        if abs(width / scene.width * scene.height / height - 1) > 0.01:
            raise SceneError(
                f"{files[i]}: {width}x{height} is another frame than the maps' {scene.width}x{scene.height}: crop it alike"
            )
        K = resample_intrinsics(scene.K[i], (scene.width, scene.height), (width, height))
        mask = resample_mask(scene.masks[i], (width, height))
        yield Photograph(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), mask, K, poses[i])


def surface_colours(
    mesh: trimesh.Trimesh,
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    photographs: Iterable[Photograph],
) -> tuple[UInt8[np.ndarray, "P 3"], Bool[np.ndarray, "P"]]:
    """Colours of points on a mesh.

    Args:
        mesh: which hides its points from cameras on their other side.
        points: on it, in its world.
        normals: unit, outward.
        photographs: of it.

    Returns:
        RGB, and which points a view sees. The others have the colour of the nearest point seen.

    Raises:
        PmniError: no view sees any of the points.
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
        raise PmniError("no photograph sees the surface: are mesh and poses of this scene, and in the same world?")
    total[seen] /= weights[seen, None]
    if not seen.all():
        _, nearest = KDTree(points[seen]).query(points[~seen], workers=-1)
        total[~seen] = total[seen][nearest]
    return np.round(total).clip(0, 255).astype(np.uint8), seen


def textured(mesh: trimesh.Trimesh, photographs: Iterable[Photograph], size: int = 1024) -> trimesh.Trimesh:
    """The mesh with a texture image, unwrapped by xatlas; its vertices are doubled along the charts' seams.

    Args:
        mesh: of some ten thousand faces: unwrapping takes seconds for that many, and minutes for a million.
        photographs: of it.
        size: about the texture's side in pixels.

    Raises:
        PmniError: no view sees the mesh.
    """
    import xatlas

    atlas, options = xatlas.Atlas(), xatlas.PackOptions()
    options.resolution, options.padding = size, 2
    vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    # In units of a face's size: xatlas leaves out faces whose area is under a fixed bound.
    scaled = (vertices - vertices.mean(axis=0)) / np.sqrt(mesh.area / len(mesh.faces))
    atlas.add_mesh(scaled.astype(np.float32), np.asarray(mesh.faces, dtype=np.uint32))
    atlas.generate(pack_options=options)
    origin, faces, uv = atlas[0]
    flat = np.column_stack([uv * [atlas.width, atlas.height], np.zeros(len(uv))])
    face, weights, covered = _texels(trimesh.Trimesh(flat, faces, process=False), atlas.width, atlas.height)
    corners = origin[faces[face]]
    texel_normals = np.einsum("pk,pki->pi", weights, normals[corners])
    texel_normals /= np.linalg.norm(texel_normals, axis=1, keepdims=True).clip(1e-12)
    points = np.einsum("pk,pki->pi", weights, vertices[corners])
    image = np.zeros((atlas.height, atlas.width, 3), dtype=np.uint8)
    image[covered], _ = surface_colours(mesh, points, texel_normals, photographs)
    # Beyond a chart's edge goes the nearest texel's colour: whoever interpolates or shrinks the image reads there.
    nearest = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    assert isinstance(nearest, np.ndarray)
    picture = Image.fromarray(image[nearest[0], nearest[1]])
    material = PBRMaterial(baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0)
    visual = TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(vertices[origin], faces, vertex_normals=normals[origin], visual=visual, process=False)


def _texels(flat: trimesh.Trimesh, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which face of an unwrapped mesh, in pixels from the lower left, each texel's centre lies on.

    Returns:
        faces (n,), barycentric weights (n, 3), and which texels (height, width), first row on top, they belong to.
    """
    y, x = np.mgrid[height - 0.5 : 0 : -1, 0.5:width]
    origins = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
    hits = RayCaster(flat).cast(origins, np.broadcast_to([0.0, 0.0, -1.0], origins.shape))
    on = np.isfinite(hits.distance)
    weights = np.column_stack([1 - hits.uv[on].sum(axis=1), hits.uv[on]])
    return hits.face[on], weights, on.reshape(height, width)
