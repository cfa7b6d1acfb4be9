# SPDX-License-Identifier: Apache-2.0
"""Cameras on a viser page: frusta with their normal maps, and flying to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import viser
import viser.transforms as vtf
from jaxtyping import Float, UInt8

IMAGE_HEIGHT = 0.35
"""Of a camera's image plane as it is drawn, at least, in radii of the object."""
IMAGE_ANGLE = 0.05
"""The same over the camera's distance, so that cameras far away are more than dots."""
THUMBNAIL_PX = 96
"""Of the longer side of the map in it."""
LEFT_BEHIND = 0.02
"""Part of a camera's distance from the object by which a client that looked through it has moved away."""


@dataclass
class _Flight:
    """A client that looks through a camera, until it moves away."""

    client: int
    view: int
    here: Float[np.ndarray, "3"]
    reach: float
    arrived: bool = False


class Frusta:
    """The cameras of a scene on a page, one frustum each.

    Args:
        server: of the page.
        names: of the views.
        K: intrinsics in pixels; pixel centres at integers.
        images: maps to show, (H, W, 3) uint8 each; their sizes are the cameras'.
        radius: of the object, in the page's units, which frusta are drawn in proportion to.
        c2w: about where the cameras stand, in the page's world, the object at its origin: far ones are drawn larger.
        on_click: told the client and the number of the camera that was clicked, after the client has flown there.
    """

    def __init__(
        self,
        server: viser.ViserServer,
        names: Sequence[str],
        K: Float[np.ndarray, "n 3 3"],
        images: Sequence[UInt8[np.ndarray, "h w 3"]],
        radius: float,
        c2w: Float[np.ndarray, "n 4 4"],
        on_click: Callable[[viser.ClientHandle, int], None],
    ) -> None:
        distance = float(np.median(np.linalg.norm(c2w[:, :3, 3], axis=1)))
        self._drawn = max(IMAGE_HEIGHT * radius, IMAGE_ANGLE * distance)
        self.fov = [2 * float(np.arctan(len(image) / 2 / k[1, 1])) for image, k in zip(images, K)]
        self._c2w: Float[np.ndarray, "n 4 4"] | None = None
        self._on_click = on_click
        self._flight: _Flight | None = None
        server.on_client_connect(self._connected)
        self.handles: list[viser.CameraFrustumHandle] = []
        for i, (name, image) in enumerate(zip(names, images)):
            height, width = image.shape[:2]
            shrink = THUMBNAIL_PX / max(height, width)
            small = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) if shrink < 1 else image
            aspect, tangent = width / height, np.tan(self.fov[i] / 2)
            # viser draws frusta of one volume whatever their angle: this is the scale at which the image has our height.
            scale = self._drawn / 2 * np.cbrt(aspect * tangent**2 / 3) / tangent
            handle = server.scene.add_camera_frustum(
                f"/cameras/{i:04d} {name.replace('/', ' ')}",
                fov=self.fov[i],
                aspect=aspect,
                scale=float(scale),
                color=(90, 90, 90),
                image=small,
                visible=False,
            )
            handle.on_click(lambda event, i=i: self._clicked(event.client, i))
            self.handles.append(handle)

    def _connected(self, client: viser.ClientHandle) -> None:
        client.camera.on_update(self._moved)

    def place(self, c2w: Float[np.ndarray, "n 4 4"] | None) -> None:
        """Move all cameras; None hides them.

        Args:
            c2w: in the page's world, OpenCV axes, rotation and position.
        """
        before, self._c2w = self._c2w, c2w
        for i, handle in enumerate(self.handles):
            # Only what has moved is told: in training poses stay for many steps.
            if c2w is not None and (before is None or not np.array_equal(before[i], c2w[i])):
                handle.wxyz = vtf.SO3.from_matrix(c2w[i, :3, :3]).wxyz
                handle.position = c2w[i, :3, 3]
            self._show(i)

    def image_distance(self, view: int) -> float:
        """From a camera's centre to the image that is drawn of it, in the page's units."""
        return self._drawn / 2 / float(np.tan(self.fov[view] / 2))

    def _show(self, view: int) -> None:
        visible = self._c2w is not None and (self._flight is None or view != self._flight.view)
        if self.handles[view].visible != visible:
            self.handles[view].visible = visible

    def _look_through(self, flight: _Flight | None) -> None:
        before, self._flight = self._flight, flight
        for each in (before, flight):
            if each is not None:
                self._show(each.view)

    def _moved(self, camera: viser.CameraHandle) -> None:
        flight = self._flight
        if flight is None or camera.client.client_id != flight.client:
            return
        near = bool(np.linalg.norm(camera.position - flight.here) <= flight.reach)
        # The client may still tell of a place that it was at before.
        if flight.arrived and not near:
            self._look_through(None)
        flight.arrived = flight.arrived or near

    def fly(self, client: viser.ClientHandle, view: int) -> None:
        """Put a client where a camera stands, with its angle of view.

        Until it moves away, this camera isn't drawn: its image would cover all there is to see.
        """
        if self._c2w is None:
            return
        c2w = self._c2w[view]
        reach = LEFT_BEHIND * float(np.linalg.norm(c2w[:3, 3]))
        self._look_through(_Flight(client.client_id, view, c2w[:3, 3].copy(), reach))
        with client.atomic():
            client.camera.position = c2w[:3, 3]
            # The foot of the world's origin on the optical axis: what the mouse then turns about is the object.
            client.camera.look_at = c2w[:3, 3] + max(-c2w[:3, 2] @ c2w[:3, 3], 1e-3) * c2w[:3, 2]
            client.camera.up_direction = -c2w[:3, 1]
            client.camera.fov = self.fov[view]

    def _clicked(self, client: viser.ClientHandle, view: int) -> None:
        self.fly(client, view)
        self._on_click(client, view)
