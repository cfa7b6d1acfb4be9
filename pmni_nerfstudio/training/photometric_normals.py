# SPDX-License-Identifier: Apache-2.0
"""Alternation of normals, solved from images under known lights given the surface, with the surface integrated from them.

The package's layers below training cannot read the images; the pipeline provides `FromImages`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Float32
from nerfstudio.utils.rich_utils import CONSOLE

from pmni_nerfstudio.data.split_views import SplitViews
from pmni_nerfstudio.model.initialization import Initialization
from pmni_nerfstudio.registration.alternation import AlternationSchedule, alternate, detailed
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import views_of_scene
from pmni_nerfstudio.threads import one_thread

_ROUNDS = 2
"""Surfaces that are integrated from refined normals. The normals of the second one are the result."""
_LEVELS = 2
"""Finest levels of the alternation that integrate them, from the surface before."""


class ImageNormals(NamedTuple):
    """Normals of all views from their images, given a surface, and how well that explains the images."""

    normals: list[Float32[np.ndarray, "h w 3"]]
    """OpenCV camera axes; zero where they are not known."""
    residual: float
    """Relative difference between the images and those of the surface."""
    direct_residual: float
    """The same without light between parts of the surface."""


class FromImages(Protocol):
    """Solver of normals, if the scene's images under known lights are there."""

    def __call__(
        self, views: SplitViews, c2w: Float[np.ndarray, "n 4 4"], mesh: trimesh.Trimesh
    ) -> ImageNormals | None:
        """Normals of views at poses in the world of a mesh; None where that is not possible."""
        ...


@dataclass(frozen=True, eq=False)
class Refinement:
    """Refined normals, and poses and surface that hold for them."""

    normals: Float[np.ndarray, "n h w 3"]
    initialization: Initialization


def refine_from_images(
    views: SplitViews, initialization: Initialization, from_images: FromImages, log: Callable[[str], None] = CONSOLE.log
) -> Refinement | None:
    """Alternate normals and surface.

    The result is kept if the surface then explains the images better than the initial one did, which had no light between
    its parts.

    Args:
        views: training views, with corrected normals and intrinsics.
        initialization: poses and surface from these normals.
        from_images: solver of the normals.
        log: receives one line about the result.

    Returns:
        None if the normals stay as they are.
    """
    # Views of different size are close-ups, whose detail is a surface of its own.
    if initialization.kind != "surface" or views.sizes is not None or initialization.detail is not None:
        return None
    started_at = time.perf_counter()
    surface, poses = Surface(initialization.sdf.cpu().numpy()), Poses.from_c2w(initialization.c2w)
    solved = _solve(views, poses, surface, from_images)
    if solved is None:
        return None
    before, after = solved.direct_residual, solved.residual
    current = views
    for _ in range(_ROUNDS):
        current = _with_normals(views, solved)
        poses, surface = _integrated(current, poses, surface, initialization)
        solved = _solve(views, poses, surface, from_images) if surface.exists else None
        if solved is None:
            return None
        after = solved.residual
    seconds = time.perf_counter() - started_at
    change = f"which left {before:.1%} of the image values unexplained before and {after:.1%} with it ({seconds:.0f} s)"
    if after >= before:
        log(f"Photometric refinement: normals were solved again from the images, {change}; they stay as they were.")
        return None
    log(f"Photometric refinement: normals were solved again with shadows and interreflection of the surface, {change}.")
    final = replace(initialization, c2w=poses.c2w(), sdf=torch.from_numpy(surface.sdf).to(initialization.sdf))
    return Refinement(_with_normals(views, solved).normals, final)


def _solve(views: SplitViews, poses: Poses, surface: Surface, from_images: FromImages) -> ImageNormals | None:
    return from_images(views, poses.c2w(), trimesh.Trimesh(*surface.mesh, process=False))


def _with_normals(views: SplitViews, solved: ImageNormals) -> SplitViews:
    """Views with the solved normals where these are known, and the normals stay where there is none."""
    normals = np.array(views.normals)
    for of_view, new, valid in zip(normals, solved.normals, views.valid):
        known = valid & new.any(axis=-1)
        of_view[known] = new[known]
    return replace(views, normals=normals)


def _integrated(
    views: SplitViews, poses: Poses, surface: Surface, initialization: Initialization
) -> tuple[Poses, Surface]:
    """Poses and surface from new normals; given poses stay."""
    schedule = AlternationSchedule()
    finest = replace(schedule, levels=schedule.levels[-_LEVELS:])
    trusted = initialization.inlier_views
    index = np.arange(len(poses)) if trusted is None else np.flatnonzero(trusted)
    used, start = views_of_scene(views, list(index)), poses.subset(index)
    with one_thread():
        moved, surface = alternate(
            used, start, finest, fixed_poses=initialization.registration is None, surface=surface
        )
        surface = detailed(used, moved, surface, schedule) if surface.exists else surface
    if initialization.registration is None:
        return poses, surface
    return poses.transformed(*align(start, moved)).replaced(index, moved), surface
