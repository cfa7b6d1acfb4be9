# SPDX-License-Identifier: Apache-2.0
"""Checks of a capture by its own images: linear values, axes of the lights, order of the images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.axes_check import AxisEvidence, axis_corrections, measure_axes
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.photometric.capture import LIGHT_AXES, CaptureView
from pmni_nerfstudio.photometric.photographs import Photographs
from pmni_nerfstudio.photometric.solver import SolverOptions, solve
from pmni_nerfstudio.photometric.view_maps import ViewMaps

SRGB_POWER = 2.2
"""Power that approximately decodes sRGB."""
_SAMPLES = 2000
"""Pixels of the check for linear values."""
_GAMMA_MARGIN = 0.6
"""Encoded values are assumed if decoding reduces the residual below this multiple."""
_AXES_MARGIN = 0.3
"""Difference of the scores, which range from -2 to 3, at which other axes are better in a view."""
_MAX_UNEXPLAINED = 0.6
"""Median of `ViewMaps.unexplained` beyond which lights and images do not belong together: above 0.85 for lights in a random
order, 0.3 for broad metallic highlights, below 0.1 for glossy plastic."""
_WARNING_UNEXPLAINED = 0.35


def check_linear(view: CaptureView, photographs: Photographs, is_gamma_given: bool) -> None:
    """Refuse images with encoded values: JPEG files, and those that the matte model fits far better after decoding.

    Raises:
        SceneError: The values are not linear; the message says how to proceed.
    """
    if is_gamma_given:
        return
    path = view.images[0]
    remedy = f"give linear images, or --gamma {SRGB_POWER} to decode them; --gamma 1 if they are linear"
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise SceneError(f"{path}: is a JPEG file, whose values are gamma-encoded; {remedy}")
    if view.lights.is_near:  # directions need a depth, and captures with calibrated near lights hold linear images
        return
    as_stored, decoded = (typical_residual(view, photographs, power) for power in (1.0, SRGB_POWER))
    if decoded < _GAMMA_MARGIN * as_stored:
        raise SceneError(
            f"{path}: its values look gamma-encoded: decoding them reduces the residual of the matte model from "
            f"{as_stored:.1%} to {decoded:.1%}; {remedy}"
        )


def typical_residual(view: CaptureView, photographs: Photographs, power: float) -> float:
    """Median residual of the matte model over the mean value, if linear values are further raised to a power."""
    pixels = np.unique(np.linspace(0, photographs.num_pixels - 1, _SAMPLES).astype(int))
    values, clipped = photographs.linear(pixels)
    # Intensities apply to the decoded values.
    intensities = photographs.intensities.astype(np.float32)
    gray = ((values * intensities) ** np.float32(power) / intensities).mean(axis=2)
    found = solve(gray, clipped, view.lights.vectors, SolverOptions())
    return float(np.median(found.residual[found.solved])) if found.solved.any() else float("inf")


def check_lights(
    source: Path, names: Sequence[str], maps: Sequence[ViewMaps], K: np.ndarray, axes: str | None
) -> list[str]:
    """Check that lights and images belong together, and that the lights have the declared axes.

    Flipped axes of the lights flip the normals, which then point away from the viewer, or inwards at the silhouette; the
    residuals stay the same. A wrong order of the images leaves most of their variation unexplained.

    Args:
        source: file or folder of the capture, for messages.
        names: of the views.
        maps: of the views, before `facing_viewer`.
        K: (N, 3, 3) intrinsics.
        axes: declared axes of the lights, if they are a key of LIGHT_AXES.

    Returns:
        Warnings, one line each.

    Raises:
        SceneError: The lights do not explain the images, or other axes fit clearly better in most views.
    """
    warnings = []
    for name, view in zip(names, maps):
        valid = view.valid
        if not valid.any():
            raise SceneError(
                f"{source}: view {name} has no pixel with enough lights that are neither in shadow nor clipped; check its images"
            )
        unexplained = float(np.median(view.unexplained[valid]))
        if unexplained > _MAX_UNEXPLAINED:
            raise SceneError(
                f"{source}: the lights of view {name} do not explain its images ({unexplained:.0%} of the values' variation "
                "remains); check that images and lights have the same order, and that the values are linear"
            )
        if unexplained > _WARNING_UNEXPLAINED:
            warnings.append(
                f"{source}: view {name} is explained badly ({unexplained:.0%} of the values' variation remains); its "
                "material is far from matte, or lights are inaccurate"
            )
    evidence = [measure_axes(view.normals, view.mask, k, np.eye(3)) for view, k in zip(maps, K)]
    flips = _best_flips(evidence)
    if flips is not None:
        raise SceneError(f"{source}: the lights have wrong axes: {_effect(flips)}; {_advice(flips, axes)}")
    return warnings


def _best_flips(evidence: Sequence[AxisEvidence]) -> tuple[int, int, int] | None:
    """Signs of the axes that fit clearly better than the declared ones in most views; None if there are none."""
    corrections = [
        np.diag(c.axes).round().astype(int) if c.axes.trace() ** 2 in (1, 9) else None for c in axis_corrections()
    ]
    candidates = {
        signs: next(i for i, found in enumerate(corrections) if found is not None and tuple(found) == signs)
        for signs in product((1, -1), repeat=3)
    }
    votes = []
    for view in evidence:
        scores = {signs: float(view.facing[i] + view.rim[i] + view.integrability[i]) for signs, i in candidates.items()}
        best = max(scores, key=lambda signs: scores[signs])
        votes.append(best if scores[best] > scores[1, 1, 1] + _AXES_MARGIN else (1, 1, 1))
    winner = max(set(votes), key=votes.count)
    return winner if winner != (1, 1, 1) and 2 * votes.count(winner) > len(votes) else None


def _effect(flips: tuple[int, int, int]) -> str:
    if flips[2] < 0:
        return "most normals point away from the viewer"
    return "normals point inwards at the silhouette"


def _advice(flips: tuple[int, int, int], axes: str | None) -> str:
    """Advice for lights whose OpenCV axes have to be flipped."""
    if axes is not None:
        wanted = np.diag(flips) @ LIGHT_AXES[axes]
        for name, matrix in LIGHT_AXES.items():
            if np.array_equal(wanted, matrix):
                return f"give --light-axes {name}"
    return "flip " + " and ".join("xyz"[i] for i in range(3) if flips[i] < 0) + " of the lights"
