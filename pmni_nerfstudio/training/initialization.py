# SPDX-License-Identifier: Apache-2.0
"""What training starts from: poses and a first surface. The seam where registration plugs in."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.console import Console
from torch import Tensor

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.hull import visual_hull
from pmni_nerfstudio.registration.alternation import AlternationSchedule, alternate
from pmni_nerfstudio.registration.cache import load_registration, registration_key, save_registration
from pmni_nerfstudio.registration.pipeline import RegistrationSettings, Watcher
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.progress import register_shown, show_summary
from pmni_nerfstudio.registration.stereo.sweep_surface import hull_agreement, sweep_start
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.threads import one_thread

_LEAST_AGREEMENT = 0.77
"""Of the views on their hull. Turntable captures of solid objects have .81 to .95, a courtyard seen from one side .74."""
_SWEEP_RESOLUTION = 129


StartKind = Literal["hull", "sweep", "surface"]


@dataclass
class Start:
    """Handed to the model before the first training step."""

    c2w: Float[np.ndarray, "n 4 4"]
    """Camera-to-world of the training views, OpenCV axes, unit-sphere world."""
    sdf: Float[Tensor, "r r r"]
    """Signed distance to the first surface on a grid over [-1, 1]^3, corners on the bounds, x slowest."""
    kind: StartKind = "hull"
    """hull: coarse, to be carved. sweep: jagged, with walls where they belong. surface: integrated from the normals, by
    a registration or at given poses, with most of its detail. The last two are to be trained gently."""
    trusted: Bool[np.ndarray, " n"] | None = None
    """Views that fit the others; None: all of them."""


def start_from_hull(
    masks: Bool[np.ndarray, "n h w"],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    resolution: int,
    votes: int,
) -> Start:
    """The given poses and their visual hull (see `visual_hull`).

    With few views fewer votes are asked, since every second opinion widens the hull; and where the masks agree on
    nothing at all (rough poses), more, until something is left.
    """
    most = len(masks)
    allowed = max(1, min(votes, most // 5))
    sdf = visual_hull(masks, K, c2w, resolution, allowed)
    while not bool((sdf < 0).any()) and allowed < most:
        allowed += 1
        sdf = visual_hull(masks, K, c2w, resolution, allowed)
    return Start(c2w=c2w, sdf=sdf)


def start_from_masks(
    root: Path,
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"],
    resolution: int,
    votes: int,
    wanted: Literal["auto", "hull", "surface", "sweep"],
    console: Console,
) -> Start:
    """The hull's surface, or one that is found at these poses before training.

    Args:
        root: of the scene, to name it.
        views: to start from.
        c2w: their poses.
        resolution: of the hull.
        votes: of the hull.
        wanted: auto: a plane sweep where the views contradict each other on the hull, else a surface integrated from
            their normals within it.
        console: for a line that says so.

    Raises:
        PmniError: the masks have no hull.
    """
    start = start_from_hull(views.masks, views.K, c2w, resolution, votes)
    if not bool((start.sdf < 0).any()):
        raise PmniError(f"{root}: the masks have no visual hull at these poses; check cameras and masks")
    if wanted == "hull":
        return start
    found = None if wanted == "surface" else start_from_sweep(views, c2w, console, always=wanted == "sweep")
    if found is None and wanted != "sweep":
        found = start_from_normals(views, c2w, console)
    return start if found is None else found


def start_from_normals(views: Views, c2w: Float[np.ndarray, "n 4 4"], console: Console) -> Start | None:
    """The surface that the views' normals ask for within their hull, at given poses (see `alternate`).

    Returns:
        None where nothing is left of it.
    """
    schedule = AlternationSchedule()
    fine = replace(schedule, levels=tuple(level for level in schedule.levels if not level.blur))
    clock = time.perf_counter()
    with one_thread():
        _, surface = alternate(views, Poses.from_c2w(c2w), fine, fixed_poses=True)
    console.log(f"Start: a surface integrated from the normals, in {time.perf_counter() - clock:.0f} s.")
    return Start(c2w, torch.from_numpy(surface.sdf), kind="surface") if surface.exists else None


def start_from_sweep(
    views: Views, c2w: Float[np.ndarray, "n 4 4"], console: Console, always: bool = False
) -> Start | None:
    """The surface of a plane sweep (see `sweep_start`), where the views contradict each other on their visual hull.

    Args:
        views: to start from.
        c2w: their known poses, unit-sphere world.
        console: for a line that says so.
        always: sweep even where the views agree on the hull.

    Returns:
        None where the hull serves, or the sweep finds nothing.
    """
    poses = Poses.from_c2w(c2w)
    agreement = hull_agreement(views, poses)
    # No agreement at all: too few matches to tell (a handful of views).
    if not always and not 0 < agreement < _LEAST_AGREEMENT:
        return None
    console.log(f"Start: views agree on {agreement:.0%} of their visual hull; depths are searched by plane sweep.")
    surface = sweep_start(views, poses, _SWEEP_RESOLUTION)
    return Start(c2w, torch.from_numpy(surface.sdf), kind="sweep") if surface.exists else None


def start_from_registration(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings,
    folder: Path,
    console: Console,
    watcher: Watcher | None = None,
) -> Start:
    """Registered poses and surface; from the folder's cache where the same scene was registered alike before.

    Args:
        views: to register.
        c2w: rough poses in the unit-sphere world, or None.
        settings: of the registration.
        folder: of the cache; made if need be.
        console: for progress and warnings.
        watcher: shown how poses and surface come about.
    """
    path = folder / f"{registration_key(views, c2w, settings)}.npz"
    if path.is_file():
        registration = load_registration(path)
        console.print(f"Registration: taken from {path}", highlight=False, soft_wrap=True)
        show_summary(registration, views, console)
    else:
        registration = register_shown(views, c2w, settings, console, watcher)
        folder.mkdir(parents=True, exist_ok=True)
        save_registration(path, registration)
    sdf = torch.from_numpy(registration.surface.sdf)
    return Start(c2w=registration.c2w, sdf=sdf, kind="surface", trusted=registration.trusted)
