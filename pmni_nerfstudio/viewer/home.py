# SPDX-License-Identifier: Apache-2.0
"""Where a page looks from at first."""

from __future__ import annotations

import numpy as np
import viser
from jaxtyping import Float

HOME_DISTANCE = 3.2
HOME_FOV = np.deg2rad(55.0)
"""In radii, and how wide: the object fills half of the page, cameras behind it are in it."""


class Home:
    """Clients that connect look at the object, which is at the page's origin.

    Args:
        server: of the page.
        radius: of the object, in the page's units.
        up: what is up on the page, unit.
        direction: from the object to where clients stand, of any length but zero.
    """

    def __init__(
        self, server: viser.ViserServer, radius: float, up: Float[np.ndarray, "3"], direction: Float[np.ndarray, "3"]
    ) -> None:
        self._server, self._radius = server, radius
        server.scene.world_axes.visible = False
        self.look(up, direction)
        server.on_client_connect(self._place)

    def look(self, up: Float[np.ndarray, "3"], direction: Float[np.ndarray, "3"]) -> None:
        """From elsewhere, clients that are there too."""
        self._up, self._position = up, HOME_DISTANCE * self._radius * direction / np.linalg.norm(direction)
        self._server.scene.set_up_direction(up)
        for client in self._server.get_clients().values():
            self._place(client)

    def _place(self, client: viser.ClientHandle) -> None:
        with client.atomic():
            client.camera.up_direction = self._up
            client.camera.position = self._position
            client.camera.look_at = np.zeros(3)
            client.camera.fov = HOME_FOV


def home_of_cameras(c2w: Float[np.ndarray, "n 4 4"]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Up and direction by which the object stands as the cameras see it.

    Args:
        c2w: of the views, OpenCV axes, in the page's world, the object at its origin.
    """
    mean = -c2w[:, :3, 1].mean(axis=0)
    length = float(np.linalg.norm(mean))
    up = mean / length if length > 0.1 else np.array([0.0, 1.0, 0.0])
    # From the first camera's side, but level with the object: cameras that look down on it are seen behind it, above.
    direction = c2w[0, :3, 3] - 0.8 * (c2w[0, :3, 3] @ up) * up
    return up, direction if np.linalg.norm(direction) > 1e-9 else oblique(up)


def oblique(up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """A direction from the side, somewhat from above."""
    side = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    return side / np.linalg.norm(side) + 0.35 * up
