# SPDX-License-Identifier: Apache-2.0
"""Known lights of a view: distant ones with directions, or near ones with positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Lights:
    """The n lights of a view, one for each of its images, in OpenCV camera axes (x right, y down, z forward).

    Files state their own axes; readers convert them (see `capture.LIGHT_AXES`).
    """

    vectors: Float[np.ndarray, "n 3"]
    """Unit directions from the object to distant lights, or positions of near lights in the camera."""
    intensities: Float[np.ndarray, "n 3"]
    """Radiant intensity of each light as the camera's red, green and blue channels measure it; only ratios matter."""
    is_near: bool = False
    """Whether `vectors` are positions."""
    axes: Float[np.ndarray, "n 3"] | None = None
    """Unit principal directions of near lights that do not shine evenly; None: they do."""
    exponents: Float[np.ndarray, " n"] | None = None
    """Falloff of such lights: the intensity at an angle from the principal direction is its cosine to this power."""

    def __len__(self) -> int:
        return len(self.vectors)

    def at(
        self, points: Float[np.ndarray, "p 3"], unit_distance: float = 1.0
    ) -> tuple[np.ndarray, Float[np.ndarray, "p n"]]:
        """Light at points of the object.

        Args:
            points: in the camera, in the units of the positions.
            unit_distance: distance at which near lights have an attenuation of 1.

        Returns:
            directions: unit vectors to the lights, float32; (n, 3) for distant lights, (p, n, 3) for near ones.
            attenuation: (p, n) float32, factor on the intensities by distance and angle; zero behind a light that shines
                to one side.
        """
        if not self.is_near:
            return self.vectors.astype(np.float32), np.ones((len(points), len(self)), np.float32)
        to_light = self.vectors[None] - points[:, None]
        distance = np.linalg.norm(to_light, axis=-1)
        directions = to_light / distance[..., None]
        attenuation = (unit_distance / distance) ** 2
        if self.axes is not None and self.exponents is not None:
            cosine = np.maximum(-np.einsum("pni,ni->pn", directions, self.axes), 0)
            attenuation *= cosine**self.exponents
        return directions.astype(np.float32), attenuation.astype(np.float32)
