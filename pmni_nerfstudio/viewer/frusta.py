# SPDX-License-Identifier: Apache-2.0
"""Cameras on a viser page: frusta with their normal maps, through which a client can look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import viser
import viser.transforms as vtf
from jaxtyping import Float, UInt8

IMAGE_HEIGHT = 0.35
"""Minimum height of a camera's image as drawn, in radii of the object."""
IMAGE_ANGLE = 0.05
"""Minimum height of the image relative to the cameras' distance, so that distant cameras remain visible."""
THUMBNAIL_PX = 96
"""Longer side of the image of a normal map, in pixels."""
LEAVE_DISTANCE = 0.02
"""Distance at which a client has left a camera, as a fraction of the camera's distance from the object."""


@dataclass
class _Visit:
    """A client that looks through a camera until it moves away."""

    client_id: int
    view: int
    position: Float[np.ndarray, "3"]
    leave_distance: float
    arrived: bool = False


class Frusta:
    """Frusta of a scene's cameras on a page.

    Args:
        server: server of the page.
        names: names of the views.
        K: intrinsics in pixels, pixel centers at integers.
        images: images to draw, (H, W, 3) uint8 each, of the cameras' sizes.
        radius: radius of the object, in the page's units; it determines the size of the frusta.
        c2w: approximate poses in the page's world, with the object at the origin; distant cameras are drawn larger.
        on_click: called with the client and the index of a clicked camera, after the client has moved there.
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
        self._image_height = max(IMAGE_HEIGHT * radius, IMAGE_ANGLE * distance)
        self.fov = [2 * float(np.arctan(len(image) / 2 / k[1, 1])) for image, k in zip(images, K)]
        self._c2w: Float[np.ndarray, "n 4 4"] | None = None
        self._on_click = on_click
        self._visit: _Visit | None = None
        server.on_client_connect(self._connected)
        self.handles: list[viser.CameraFrustumHandle] = []
        for i, (name, image) in enumerate(zip(names, images)):
            height, width = image.shape[:2]
            shrink = THUMBNAIL_PX / max(height, width)
            small = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) if shrink < 1 else image
            aspect, tangent = width / height, np.tan(self.fov[i] / 2)
            # viser draws frusta of equal volume for all fields of view; this scale gives the image its height.
            scale = self._image_height / 2 * np.cbrt(aspect * tangent**2 / 3) / tangent
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
        """Move all cameras to their poses in the page's world, OpenCV axes; None hides them."""
        before, self._c2w = self._c2w, c2w
        for i, handle in enumerate(self.handles):
            # Only changes are sent: in training, poses stay the same for many steps.
            if c2w is not None and (before is None or not np.array_equal(before[i], c2w[i])):
                handle.wxyz = vtf.SO3.from_matrix(c2w[i, :3, :3]).wxyz
                handle.position = c2w[i, :3, 3]
            self._show(i)

    def image_distance(self, view: int) -> float:
        """Distance from a camera's center to its image as drawn, in the page's units."""
        return self._image_height / 2 / float(np.tan(self.fov[view] / 2))

    def _show(self, view: int) -> None:
        visible = self._c2w is not None and (self._visit is None or view != self._visit.view)
        if self.handles[view].visible != visible:
            self.handles[view].visible = visible

    def _set_visit(self, visit: _Visit | None) -> None:
        before, self._visit = self._visit, visit
        for each in (before, visit):
            if each is not None:
                self._show(each.view)

    def _moved(self, camera: viser.CameraHandle) -> None:
        visit = self._visit
        if visit is None or camera.client.client_id != visit.client_id:
            return
        near = bool(np.linalg.norm(camera.position - visit.position) <= visit.leave_distance)
        # Until the client has arrived, it may still report earlier positions.
        if visit.arrived and not near:
            self._set_visit(None)
        visit.arrived = visit.arrived or near

    def look_through(self, client: viser.ClientHandle, view: int) -> None:
        """Move a client to a camera, and give it the camera's field of view.

        Until the client moves away the camera is hidden, because its image would cover the page.
        """
        if self._c2w is None:
            return
        c2w = self._c2w[view]
        leave_distance = LEAVE_DISTANCE * float(np.linalg.norm(c2w[:3, 3]))
        self._set_visit(_Visit(client.client_id, view, c2w[:3, 3].copy(), leave_distance))
        with client.atomic():
            client.camera.position = c2w[:3, 3]
            # The point of the optical axis nearest to the object's center, so that the mouse orbits the object.
            client.camera.look_at = c2w[:3, 3] + max(-c2w[:3, 2] @ c2w[:3, 3], 1e-3) * c2w[:3, 2]
            client.camera.up_direction = -c2w[:3, 1]
            client.camera.fov = self.fov[view]

    def _clicked(self, client: viser.ClientHandle, view: int) -> None:
        self.look_through(client, view)
        self._on_click(client, view)
