# SPDX-License-Identifier: Apache-2.0
"""Alternation of normals, solved from images under known lights given the surface, with the surface integrated from them.

The package's layers below training cannot read the images; the pipeline provides `FromImages`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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
_ALBEDOS = 0.7, 0.35
"""Albedos that the brightest parts of the surface are taken to have, tried until the images are explained better: lights
have no absolute intensity, which leaves it unknown. Where the surface is not concave enough yet, interreflection on it is
too weak, and an albedo above the true one makes up for that; far above, the surface becomes too concave."""
_LEVELS = 2
"""Finest levels of the alternation that integrate them, from the surface before."""


class ImageNormals(NamedTuple):
    """Normals of all views from their images, given a surface, and how well that explains the images."""

    normals: list[Float32[np.ndarray, "h w 3"]]
    """OpenCV camera axes; zero where they are not known."""
    residual: float
    """Relative difference between the images and those of the surface."""
    direct_residual: float
    """Residual of the model without interreflection."""


class FromImages(Protocol):
    """Solver of normals, if the scene's images under known lights are there."""

    def __call__(
        self, views: SplitViews, c2w: Float[np.ndarray, "n 4 4"], mesh: trimesh.Trimesh, brightest: float
    ) -> ImageNormals | None:
        """Normals of views at poses in the world of a mesh, whose brightest parts have an albedo; None if impossible."""
        ...


_Solver = Callable[[SplitViews, np.ndarray, trimesh.Trimesh], ImageNormals | None]


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
        log: receives a line about each result.

    Returns:
        None if the normals stay as they are.
    """
    # Views of different size are close-ups, whose detail is a surface of its own.
    if initialization.kind != "surface" or views.sizes is not None or initialization.detail is not None:
        return None
    for albedo in _ALBEDOS:
        started_at = time.perf_counter()
        found = _alternated(views, initialization, partial(from_images, brightest=albedo))
        if found is None:
            return None
        refinement, before, after = found
        residuals = (
            f"which leaves {after:.1%} of the image values unexplained, after {before:.1%} without "
            f"(brightest albedo {albedo}; {time.perf_counter() - started_at:.0f} s)"
        )
        if after < before:
            log(f"Photometric refinement: normals solved again with shadows and interreflection, {residuals}.")
            return refinement
        log(f"Photometric refinement: left out, {residuals}.")
    return None


def _alternated(
    views: SplitViews, initialization: Initialization, solver: _Solver
) -> tuple[Refinement, float, float] | None:
    """The alternation at one albedo, and the residuals before and after it."""
    surface, poses = Surface(initialization.sdf.cpu().numpy()), Poses.from_c2w(initialization.c2w)
    solved = _solve(views, poses, surface, solver)
    before = None if solved is None else solved.direct_residual
    for _ in range(_ROUNDS):
        if solved is None:
            return None
        poses, surface = _integrated(_with_normals(views, solved), poses, surface, initialization)
        solved = _solve(views, poses, surface, solver) if surface.exists else None
    if solved is None or before is None:
        return None
    final = replace(initialization, c2w=poses.c2w(), sdf=torch.from_numpy(surface.sdf).to(initialization.sdf))
    return Refinement(_with_normals(views, solved).normals, final), before, solved.residual


def _solve(views: SplitViews, poses: Poses, surface: Surface, solver: _Solver) -> ImageNormals | None:
    return solver(views, poses.c2w(), trimesh.Trimesh(*surface.mesh, process=False))


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
