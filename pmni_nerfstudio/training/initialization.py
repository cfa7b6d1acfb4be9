# SPDX-License-Identifier: Apache-2.0
"""Initial poses and surface of a run, by registration or at given poses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.utils.rich_utils import CONSOLE

from pmni_nerfstudio.data.close_ups import close_ups_among
from pmni_nerfstudio.data.images import open_npy
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.hull import visual_hull
from pmni_nerfstudio.model.initialization import Initialization
from pmni_nerfstudio.model.pmni_model import PmniModel
from pmni_nerfstudio.registration.alternation import AlternationSchedule, alternate, detailed
from pmni_nerfstudio.registration.cache import load_registration, registration_key, save_registration
from pmni_nerfstudio.registration.close_up_detail import close_up_detail
from pmni_nerfstudio.registration.close_up_registration import placed_close_ups
from pmni_nerfstudio.registration.console import print_summary, register_with_progress
from pmni_nerfstudio.registration.monitoring import Watcher
from pmni_nerfstudio.registration.partial import load_coarse_result
from pmni_nerfstudio.registration.pipeline import RegistrationSettings
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.reflectance import estimate_bias
from pmni_nerfstudio.registration.stereo.multi_view_stereo import hull_agreement, stereo_surface
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.threads import one_thread

_MIN_HULL_AGREEMENT = 0.77
"""Agreement of the views on their visual hull below which depths are searched by plane sweep. Turntable captures of solid
objects have 0.81 to 0.95, a concave scene captured from one side 0.74."""
_SWEEP_RESOLUTION = 129


def find_initialization(
    model: PmniModel, views: Views, cache: Path, watcher: Watcher | None, shared: Path | None = None
) -> Initialization:
    """Find the poses and the surface that a run starts from, as the model's configuration specifies.

    Args:
        model: Model to initialize.
        views: Observations of its training views.
        cache: Folder of cached registrations; created if necessary.
        watcher: Notified of the registration's progress, if any.
        shared: Folder of registrations that other runs may take up; see `initialize_by_registration`.

    Raises:
        PmniError: The views cannot be registered, or the masks have no visual hull at the given poses.
    """
    given, config = model.views, model.config
    if model.uses_registration:
        rough_c2w = given.c2w if given.has_poses else None
        settings = RegistrationSettings(config.registration_seed)
        return initialize_by_registration(views, rough_c2w, settings, cache, watcher, config.train_anyway, shared)
    if config.initial_sdf is not None:
        return initialize_from_file(config.initial_sdf, given.c2w)
    hull = initialize_from_hull(views.possible, views.K, given.c2w, config.hull_resolution, config.hull_votes)
    if not bool((hull.sdf < 0).any()):
        raise PmniError(f"{given.root}: the masks have no visual hull at these poses; check the cameras and masks")
    surface = model.initial_surface
    if surface == "hull":
        return hull
    found = None
    if surface in ("auto", "sweep"):
        found = initialize_by_plane_sweep(views, given.c2w, always=surface == "sweep")
    if found is None and surface != "sweep":
        found = initialize_from_normals(views, given.c2w)
    return hull if found is None else found


def initialize_from_file(path: Path, c2w: Float[np.ndarray, "n 4 4"]) -> Initialization:
    """Given poses and the surface of a file of signed distances.

    Raises:
        PmniError: The file is missing or broken, or holds no signed distances on a cubic grid.
    """
    sdf = open_npy(path)
    if sdf.ndim != 3 or len(set(sdf.shape)) != 1 or len(sdf) < 2:
        raise PmniError(f"{path}: holds an array of shape {sdf.shape}; signed distances are on a grid (n, n, n)")
    sdf = np.array(sdf, dtype=np.float32)
    if not np.isfinite(sdf).all() or not (sdf < 0).any() or not (sdf > 0).any():
        raise PmniError(f"{path}: has no surface; signed distances are finite, negative inside and positive outside")
    return Initialization(c2w, torch.from_numpy(sdf), kind="surface")


def initialize_from_hull(
    masks: Bool[np.ndarray, "n h w"],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    resolution: int,
    votes: int,
) -> Initialization:
    """Given poses and their visual hull (see `visual_hull`).

    The number of votes is reduced for few views, because each additional vote enlarges the hull, and increased while the
    hull is empty, as happens with rough poses.

    Args:
        masks: Masks of the views.
        K: Intrinsics in pixels.
        c2w: Camera-to-world poses, unit-sphere world.
        resolution: Number of grid vertices per axis.
        votes: Number of views that have to see a point outside their mask to exclude it.
    """
    num_views = len(masks)
    allowed = max(1, min(votes, num_views // 5))
    sdf = visual_hull(masks, K, c2w, resolution, allowed)
    while not bool((sdf < 0).any()) and allowed < num_views:
        allowed += 1
        sdf = visual_hull(masks, K, c2w, resolution, allowed)
    return Initialization(c2w=c2w, sdf=sdf)


def initialize_from_normals(views: Views, c2w: Float[np.ndarray, "n 4 4"]) -> Initialization | None:
    """Given poses and the surface integrated from the normals within the visual hull (see `alternate`).

    Args:
        views: Observations.
        c2w: Camera-to-world poses, unit-sphere world.

    A significant reflectance bias is removed from the normals, and the surface integrated again.

    Returns:
        None if the surface is empty.
    """
    schedule = AlternationSchedule()
    fine = replace(schedule, levels=tuple(level for level in schedule.levels if not level.blur))
    started_at = time.perf_counter()
    poses, everything = Poses.from_c2w(c2w), np.ones(len(views), dtype=bool)
    with one_thread():
        _, surface = alternate(views, poses, fine, fixed_poses=True)
        if not surface.exists:
            return None
        _, reflectance = estimate_bias(views, poses, surface, everything, schedule, fixed_poses=True)
        if reflectance.applied:
            CONSOLE.log(f"Initialization: {reflectance.note}.")
            views = reflectance.removed_from(views)
            _, surface = alternate(views, poses, fine, fixed_poses=True)
        surface = detailed(views, poses, surface, schedule)
        detail = close_up_detail(views, poses, close_ups_among(views, c2w), surface, schedule)
    CONSOLE.log(f"Initialization: integrated a surface from the normals in {time.perf_counter() - started_at:.0f} s.")
    return Initialization(c2w, torch.from_numpy(surface.sdf), kind="surface", reflectance=reflectance, detail=detail)


def initialize_by_plane_sweep(views: Views, c2w: Float[np.ndarray, "n 4 4"], always: bool) -> Initialization | None:
    """Given poses and the surface of a plane sweep (see `stereo_surface`), if the views disagree on their visual hull.

    Args:
        views: Observations.
        c2w: Camera-to-world poses, unit-sphere world.
        always: Sweep even if the views agree on the hull.

    Returns:
        None if the views agree on the hull, or the sweep finds no surface.
    """
    poses = Poses.from_c2w(c2w)
    agreement = hull_agreement(views, poses)
    # An agreement of 0 means that there are too few matches to tell, as with a handful of views.
    if not always and not 0 < agreement < _MIN_HULL_AGREEMENT:
        return None
    CONSOLE.log(f"Initialization: views agree on {agreement:.0%} of their visual hull; running a plane sweep.")
    surface = stereo_surface(views, poses, _SWEEP_RESOLUTION)
    return Initialization(c2w, torch.from_numpy(surface.sdf), kind="sweep") if surface.exists else None


def initialize_by_registration(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings,
    cache: Path,
    watcher: Watcher | None = None,
    train_anyway: bool = False,
    shared: Path | None = None,
) -> Initialization:
    """Registered poses and surface, read from the cache if the same views were registered with the same settings.

    Args:
        views: Observations.
        c2w: Rough camera-to-world poses, unit-sphere world; None if unknown.
        settings: Settings of the registration.
        cache: Folder of cached registrations; created if necessary.
        watcher: Notified of the progress, if any.
        train_anyway: Return the result even if the registration failed.
        shared: Folder that also keeps the result, and the coarse result until then, so that a later run goes on where
            this one was interrupted; None to keep nothing there.

    Raises:
        PmniError: The views cannot be registered, or the registration failed; its result is in the cache.
    """
    key = registration_key(views, c2w, settings)
    path = cache / f"{key}.npz"
    kept = path if shared is None else shared / f"{key}.npz"
    partial = None if shared is None else shared / f"{key}-coarse.npz"
    registration = found = None
    for file in dict.fromkeys((path, kept)):
        registration = _unless_damaged(file, load_registration)
        if registration is not None:
            found = file
            break
    if registration is not None:
        CONSOLE.print(f"Registration: loaded from {found}", highlight=False, soft_wrap=True)
        print_summary(registration, views, CONSOLE)
    else:
        count = len(views) - int(placed_close_ups(views, c2w).sum())  # close-ups follow on the complete result
        if partial is not None and _unless_damaged(partial, lambda file: load_coarse_result(file, count)) is None:
            partial.unlink(missing_ok=True)
        registration = register_with_progress(views, c2w, settings, CONSOLE, watcher, partial)
    for file in {path, kept} - {found}:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_registration(file, registration)
    if partial is not None:
        partial.unlink(missing_ok=True)
    if registration.verdict.name == "failed" and not train_anyway:
        poses = (
            ""
            if c2w is None
            else "without the poses of the scene (--pipeline.datamanager.dataparser.initial-poses none), "
        )
        raise PmniError(
            f"the registration failed: {registration.verdict.reasons[0]}; it is kept in {path}; train {poses}at accurate "
            "poses (ns-train pmni-calibrated), or with this result (--pipeline.model.train-anyway True)"
        )
    sdf = torch.from_numpy(registration.surface.sdf)
    reflectance = registration.reflectance
    trusted, detail = np.flatnonzero(registration.trusted), None
    close_ups = close_ups_among(views, c2w)[trusted]
    if close_ups.any():
        used, poses = registration.corrected(views).subset(list(trusted)), Poses.from_c2w(registration.c2w[trusted])
        with one_thread():
            detail = close_up_detail(used, poses, close_ups, registration.surface, settings.alternation)
    return Initialization(registration.c2w, sdf, "surface", registration.trusted, registration, reflectance, detail)


_Kept = TypeVar("_Kept")


def _unless_damaged(file: Path, load: Callable[[Path], _Kept]) -> _Kept | None:
    """Load the result of an earlier registration from a file.

    Returns:
        None if the file is missing or damaged; the latter is printed.
    """
    if not file.is_file():
        return None
    try:
        return load(file)
    except PmniError as error:
        reason = str(error).removesuffix("; remove it to register again")
        CONSOLE.print(f"Registration: {reason}; registering again", markup=False, highlight=False, soft_wrap=True)
        return None
