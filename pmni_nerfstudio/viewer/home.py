# SPDX-License-Identifier: Apache-2.0
"""Initial viewpoint of a page."""

from __future__ import annotations

import numpy as np
import viser
from jaxtyping import Float

HOME_DISTANCE = 3.2
"""Distance of the initial viewpoint from the object, in radii of the object."""
HOME_FOV = np.deg2rad(55.0)
"""Vertical field of view, in radians: the object fills half of the page, and cameras behind it are visible."""


class Home:
    """Initial viewpoint of all clients, looking at the object at the page's origin.

    Args:
        server: server of the page.
        radius: radius of the object, in the page's units.
        up: unit vector that points up on the page.
        direction: direction from the object to the viewpoint, of any length but zero.
    """

    def __init__(
        self, server: viser.ViserServer, radius: float, up: Float[np.ndarray, "3"], direction: Float[np.ndarray, "3"]
    ) -> None:
        self._server, self._radius = server, radius
        server.scene.world_axes.visible = False
        self.look(up, direction)
        server.on_client_connect(self._place)

    def look(self, up: Float[np.ndarray, "3"], direction: Float[np.ndarray, "3"]) -> None:
        """Change the viewpoint, and move the connected clients there."""
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


def home_from_cameras(c2w: Float[np.ndarray, "n 4 4"]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Up vector and direction of a viewpoint that shows the object upright, as most cameras do.

    Args:
        c2w: poses of the views in the page's world, OpenCV axes, with the object at the origin.
    """
    mean = -c2w[:, :3, 1].mean(axis=0)
    length = float(np.linalg.norm(mean))
    up = mean / length if length > 0.1 else np.array([0.0, 1.0, 0.0])
    # On the side of the first camera but nearly level with the object, so that cameras above it appear behind it.
    direction = c2w[0, :3, 3] - 0.8 * (c2w[0, :3, 3] @ up) * up
    return up, direction if np.linalg.norm(direction) > 1e-9 else oblique_direction(up)


def oblique_direction(up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """Direction from one side and slightly above."""
    side = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    return side / np.linalg.norm(side) + 0.35 * up
