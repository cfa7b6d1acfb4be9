# SPDX-License-Identifier: Apache-2.0
"""The frame of glTF files, meters and y up, from the world and units of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.errors import PmniError

Axis = Literal["x", "y", "z", "-x", "-y", "-z"]
METERS = {"m": 1.0, "dm": 0.1, "cm": 0.01, "mm": 0.001, "um": 1e-6, "km": 1000.0, "in": 0.0254, "ft": 0.3048}
"""Meters per unit, by the names of units of length."""
_NEAR_AXIS_DEG = 15.0
"""An axis of the world this near to the cameras' up direction is taken to be meant."""
_MIN_AGREEMENT = 0.3
"""Least length of the mean of the cameras' up directions; less, as of an object turned over, says nothing."""


@dataclass(frozen=True, eq=False)
class AssetFrame:
    """Up direction and unit of length of the data's world."""

    up: Float[np.ndarray, "3"]
    """Unit vector in the data's world."""
    up_from: str
    """Source of the direction, as text."""
    units: str
    """Name of the data's units."""
    meters: float | None
    """Meters per unit; None if the data have no known scale, and one unit is written as one meter."""

    @property
    def scale(self) -> float:
        """Factor of the lengths in the files."""
        return 1.0 if self.meters is None else self.meters

    @property
    def rotation(self) -> Float[np.ndarray, "3 3"]:
        """Rotation of the data's world that turns `up` to y, by the shortest way."""
        axis, y = np.cross(self.up, [0.0, 1.0, 0.0]), self.up[1]
        sine = np.linalg.norm(axis)
        if sine < 1e-9:
            return np.eye(3) if y > 0 else np.diag([1.0, -1.0, -1.0])
        return Rotation.from_rotvec(axis / sine * np.arctan2(sine, y)).as_matrix()


def asset_frame(up: Axis | None, units: str | None, c2w: Float[np.ndarray, "n 4 4"] | None) -> AssetFrame:
    """The frame that options and cameras tell.

    Args:
        up: axis of the data's world that points up; None: the cameras' mean up direction.
        units: units of the data: a name in METERS, or any other name for units without a scale; None: not known.
        c2w: poses of the cameras, OpenCV axes; None: not known.

    Raises:
        PmniError: `up` is no axis.
    """
    name = units or "unknown units"
    meters = METERS.get(name)
    if up is not None:
        if up not in get_args(Axis):
            raise PmniError(f"up: {up} is no axis; give one of {', '.join(get_args(Axis))}")
        sign = -1.0 if up.startswith("-") else 1.0
        return AssetFrame(sign * np.eye(3)["xyz".index(up[-1])] + 0.0, f"--up {up}", name, meters)
    mean = np.zeros(3) if c2w is None or not len(c2w) else -c2w[:, :3, 1].mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < _MIN_AGREEMENT:
        reason = "no cameras" if c2w is None else "cameras have no common up direction"
        return AssetFrame(np.array([0.0, 1.0, 0.0]), f"y by default, {reason}", name, meters)
    mean /= length
    nearest = int(np.abs(mean).argmax())
    axis = np.sign(mean[nearest]) * np.eye(3)[nearest]
    if mean @ axis > np.cos(np.radians(_NEAR_AXIS_DEG)):
        return AssetFrame(axis, "axis nearest to the cameras' mean up direction", name, meters)
    return AssetFrame(mean, "the cameras' mean up direction", name, meters)
