# SPDX-License-Identifier: Apache-2.0
"""Overview image of a registration result: observed and rendered normals of some views, and the cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.geometry.normals import angular_error_deg, normals_to_rgb
from pmni_nerfstudio.registration.confidence import rendered_normals
from pmni_nerfstudio.registration.pipeline import Registration
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views

_MAX_VIEWS = 6
_MAX_ERROR_DEG = 15.0


def write_registration_picture(path: Path, views: Views, registration: Registration) -> None:
    """Draw observed normals, rendered normals and angular error of up to six evenly spaced views, and all cameras.

    Args:
        path: image file to write; its suffix selects the format.
        views: views that were registered.
        registration: result for these views.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = np.unique(np.linspace(0, len(views) - 1, min(_MAX_VIEWS, len(views))).round().astype(int))
    figure = Figure(figsize=(2.1 * len(chosen) + 4.6, 6.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = np.ravel(figure.subfigures(1, 2, squeeze=False, width_ratios=[2.1 * len(chosen), 4.6]))
    axes = np.asarray(left.subplots(3, len(chosen), squeeze=False))
    poses = Poses.from_c2w(registration.c2w)
    image = None
    for column, view in zip(axes.T, chosen):
        mask = views.masks[view]
        rendered = rendered_normals(views, poses, registration.surface, int(view))
        seen = np.linalg.norm(rendered, axis=-1) > 0.5
        error = np.where(views.valid[view] & seen, angular_error_deg(rendered, views.normals[view]), np.nan)
        rows, columns = (np.flatnonzero(mask.any(axis=a)) for a in (1, 0))
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        column[0].imshow(normals_to_rgb(views.normals[view], mask[..., None])[window])
        column[1].imshow(normals_to_rgb(rendered, seen[..., None])[window])
        image = column[2].imshow(error[window], vmin=0, vmax=_MAX_ERROR_DEG, cmap="magma")
        note = "" if registration.trusted[view] else " (left out)"
        column[0].set_title(f"{views.names[view]}{note}", fontsize=8)
        column[2].set_title(f"{registration.agreement.residual_deg[view]:.1f} deg", fontsize=8)
        for axis in column:
            axis.set_axis_off()
    assert image is not None
    left.colorbar(image, ax=list(axes[2]), orientation="horizontal", label="degrees", shrink=0.5, aspect=40)
    left.suptitle("observed normals, rendered normals, angular error", fontsize=9)
    _draw_cameras(right.add_subplot(projection="3d"), registration, poses)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_cameras(axis, registration: Registration, poses: Poses) -> None:
    """Draw some surface vertices, and the viewing directions of all cameras at the same distance from the surface."""
    vertices, _ = registration.surface.mesh
    thin = vertices[:: max(1, len(vertices) // 2500)]
    axis.scatter(*thin.T, s=1, c="0.6", linewidths=0)
    centers = poses.centers()
    near = 2.2 * centers / np.linalg.norm(centers, axis=1, keepdims=True)
    ahead = near + 0.45 * poses.R[:, 2]
    confidence = registration.agreement.confidence
    for i, (start, end) in enumerate(zip(near, ahead)):
        color = "tab:red" if not registration.trusted[i] else (0.1, 0.3 + 0.5 * confidence[i], 0.6)
        axis.plot(*np.stack([start, end]).T, color=color, linewidth=1.5)
        axis.scatter(*start, s=12, color=color)
    axis.set_title("cameras around the surface\n(distances not to scale; red: left out)", fontsize=9)
    axis.set_aspect("equal")
    axis.set_axis_off()
