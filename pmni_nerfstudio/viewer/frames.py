# SPDX-License-Identifier: Apache-2.0
"""Frames of a page: when they are rendered, at which size, and what its menu of outputs shows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Dict, Tuple

import viser
from jaxtyping import UInt8
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from numpy import ndarray

from pmni_nerfstudio.model.eval_images import MAX_ERROR_DEG, color_bar, depth_image
from pmni_nerfstudio.training.lock import TrainingLock

if TYPE_CHECKING:
    from nerfstudio.viewer.utils import CameraState
    from nerfstudio.viewer.viewer import Viewer

MOVING_SECONDS = 0.07
"""Time in seconds that a frame may take while the page's camera moves, which determines its size."""
SMALLEST_FRAME_PX = 48
"""Smallest height of a frame in pixels."""
_FIRST_RAYS_PER_SECOND = 100_000.0
_DEPTH_BUFFER = "gl_z_buf_depth"
"""nerfstudio's name of the depth by which the browser hides what lies behind the surface."""

SHADED, NORMALS, DEPTH, ERROR, OPACITY = "shaded", "normals", "depth", "angular error", "opacity"
"""Names of the outputs in the page's menu."""
LEGENDS = {
    SHADED: "",
    NORMALS: "Normals of the surface in the world: x, y, z as red, green, blue.",
    DEPTH: "From the nearest to the farthest point of the surface in the picture.",
    ERROR: f"0 to {MAX_ERROR_DEG:.0f} deg and more, to the normals of the nearest view; gray: it has none there.",
    OPACITY: "Black: no surface; white: opaque.",
}
"""Explanation of the colors of each output."""


def legend_bar(output: str) -> UInt8[ndarray, "h w 3"] | None:
    """Picture of an output's color scale, if it has one."""
    return color_bar() if output in (DEPTH, ERROR) else None


class PageOutputs(Dict[str, Any]):
    """Images for the page's menu by name, and the depth buffer, which the menu does not list."""

    def keys(self) -> Any:
        """Names of the images, in order."""
        return [name for name in super().keys() if name != _DEPTH_BUFFER]


def page_outputs(outputs: Dict[str, Any]) -> PageOutputs:
    """Images of the page, from the outputs of `PmniModel.get_outputs_for_camera`."""
    surface = outputs["accumulation"][..., 0] > 0.5
    found = PageOutputs(
        {
            SHADED: outputs["rgb"],
            NORMALS: outputs["normals"],
            DEPTH: depth_image(outputs["depth"][..., 0], surface),
            ERROR: outputs["angular_error"],
            OPACITY: outputs["accumulation"].expand(-1, -1, 3),
        }
    )
    if _DEPTH_BUFFER in outputs:
        found[_DEPTH_BUFFER] = outputs[_DEPTH_BUFFER]
    return found


class FrameRenderer(RenderStateMachine):
    """Thread that renders the frames of one client, in place of nerfstudio's.

    nerfstudio measures its speed with the time that it waits for the training, so that frames get smaller and smaller.
    Here the time of the rendering counts, the training learns that somebody moves, and the first frame after a movement
    is the sharp one.
    """

    def __init__(self, viewer: Viewer, scale: float, client: viser.ClientHandle) -> None:
        super().__init__(viewer, scale, client)
        self.transitions["low_move"]["static"] = "high"
        self._before: RenderStateMachine | None = None
        self._moved = True
        self._rays_per_second = _FIRST_RAYS_PER_SECOND

    @classmethod
    def replace(cls, viewer: Viewer, scale: float, client: viser.ClientHandle) -> FrameRenderer | None:
        """Start the frames of a client that nerfstudio has just begun to serve; None if it has left already."""
        before = viewer.render_statemachines.get(client.client_id)
        if before is None:
            return None
        before.state = "high"  # in which it renders nothing until the camera moves
        before.running, before.next_action = False, None
        renderer = cls(viewer, scale, client)
        renderer._before = before
        viewer.render_statemachines[client.client_id] = renderer
        renderer.start()
        return renderer

    def finish(self) -> None:
        """Stop after the frame in progress, and wait for that."""
        self.running = False
        self.join()
        if self._before is not None:
            self._before.join()

    def action(self, action: RenderAction) -> None:
        """Take an action. A movement of the camera, or another output, gets more of the time; steps wait for its end."""
        lock: Any = self.viewer.train_lock
        if action.action in ("move", "rerender"):
            self._moved = True
            if isinstance(lock, TrainingLock):
                lock.moved()
        elif action.action == "step" and self.state == "low_move":
            return
        super().action(action)

    def _render_img(self, camera_state: CameraState) -> Dict[str, Any]:
        lock: Any = self.viewer.train_lock
        if not isinstance(lock, TrainingLock):
            return super()._render_img(camera_state)
        if self.state == "high" and self._moved and lock.is_open:
            with lock.requested(math.inf):  # the camera rests: what the user waits for goes first
                outputs = super()._render_img(camera_state)
            self._moved = False
        else:
            outputs = super()._render_img(camera_state)
        if lock.held_seconds > 0:
            self._rays_per_second = outputs["accumulation"].numel() / lock.held_seconds
        return outputs

    def _calculate_image_res(self, aspect_ratio: float) -> Tuple[int, int]:
        if self.state == "high" or not isinstance(self.viewer.train_lock, TrainingLock):
            return super()._calculate_image_res(aspect_ratio)
        longest = self.viewer.control_panel.max_res
        height = max((self._rays_per_second * MOVING_SECONDS / aspect_ratio) ** 0.5, SMALLEST_FRAME_PX)
        height = min(height, longest, longest / aspect_ratio)
        return round(height), round(height * aspect_ratio)

    def _send_output_to_viewer(self, outputs: Dict[str, Any], static_render: bool = True) -> None:
        images = page_outputs(outputs)
        if self.viewer.control_panel.output_render not in images:
            self.output_keys = {}  # the menu is new, or that of a frame of nerfstudio's own thread
        super()._send_output_to_viewer(images, static_render)
