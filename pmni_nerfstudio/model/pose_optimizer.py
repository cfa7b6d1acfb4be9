# SPDX-License-Identifier: Apache-2.0
"""Camera poses that learn: SE(3) corrections about the object's centre, composed the same way by everyone who asks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Optional, Type, Union

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from pmni_nerfstudio.geometry.se3 import choose_exponential, fix_gauge
from pmni_nerfstudio.geometry.transforms import flip_camera_axes, homogeneous


@dataclass
class PmniPoseOptimizerConfig(CameraOptimizerConfig):
    """Configuration of the pose corrections."""

    _target: Type = field(default_factory=lambda: PmniPoseOptimizer)
    """Target class to instantiate."""
    mode: Literal["off", "SE3"] = "SE3"  # fewer than the parent
    """Whether camera poses learn: off leaves them exactly as the data has them."""
    trans_l2_penalty: float = 0.0
    """Weight of the mean squared translation since the start, in scene radii."""
    rot_l2_penalty: float = 0.0
    """Weight of the mean squared rotation since the start, in radians."""


class PmniPoseOptimizer(CameraOptimizer):
    """Pose corrections of all training views.

    With base_i the pose that the dataset made view i's rays from and start_i the one that optimisation began at,
    all camera-to-world,

        c2w_i = exp(gauge(A_i (translation_i, rotation_i))) start_i,        A_i: from camera i's axes to the world's.

    The correction is thus a motion about the *world's origin*, the object's centre, told in the camera's axes:
    `rotation` turns the object as the camera sees it, `translation` shifts it sideways (x, y) and in depth (z).
    Rotation about the camera's own centre, many radii away, would throw the object out of the frame. `fix_gauge`
    says what the gauge takes out: twists alone are projected, a linear map, so that gradients pass as they are.

    One rule of composition serves all: `forward` returns delta = base^-1 c2w, which the viewer and `apply_to_camera`
    put behind a camera's own matrix (camera @ delta), and `apply_to_raybundle` moves rays in the world by the same
    motion, c2w base^-1. Everything is composed in double precision: cameras stand fifteen radii away, and automatic
    mixed precision leaves doubles alone.

    `start_c2w` and the parameters are in the checkpoint. `base_c2w` isn't: it belongs to the dataset in hand, and
    one restored from elsewhere would move rays that don't start there.

    Args:
        config: of the corrections.
        num_cameras: training views.
        device: where the tensors live.
        base_c2w: poses of the dataset's cameras, OpenGL axes, in the unit-sphere world.

    Raises:
        ValueError: base_c2w has the wrong shape or holds no rigid motions.
    """

    base_c2w: Tensor
    start_c2w: Tensor
    _base_w2c: Tensor

    def __init__(
        self,
        config: PmniPoseOptimizerConfig,
        num_cameras: int,
        device: Union[torch.device, str],
        base_c2w: Float[Tensor, "n 3 4"],
        **kwargs: Any,
    ) -> None:
        # Not the parent's own: it would make the one parameter that ours replace.
        nn.Module.__init__(self)
        self.config = config
        self.num_cameras = num_cameras
        self.device = torch.device(device)
        base = _checked_poses(base_c2w, num_cameras).to(device)
        self.register_buffer("base_c2w", base, persistent=False)
        self.register_buffer("_base_w2c", torch.linalg.inv(homogeneous(base.double())), persistent=False)
        self.register_buffer("start_c2w", base.clone())
        self.depth_log_scale = nn.Parameter(torch.zeros(num_cameras, device=device))
        if self.learns:
            self.translation = nn.Parameter(torch.zeros(num_cameras, 3, device=device))
            self.rotation = nn.Parameter(torch.zeros(num_cameras, 3, device=device))
            provider, self._exponential = choose_exponential()
            CONSOLE.log(f"Pose optimizer: SE(3) exponential map from {provider}.")

    @property
    def learns(self) -> bool:
        """Whether poses can differ from the dataset's."""
        return self.config.mode != "off"

    @torch.no_grad()
    def set_start(self, c2w: Float[Tensor, "n 3 4"]) -> None:
        """Take over poses found elsewhere (registration, a Gauss-Newton step); corrections begin anew from there.

        Args:
            c2w: OpenGL axes, in the unit-sphere world.

        Raises:
            ValueError: mode is off, or c2w has the wrong shape or holds no rigid motions.
        """
        if not self.learns:
            raise ValueError("set_start: the pose optimizer's mode is off, poses are the dataset's")
        self.start_c2w.copy_(_checked_poses(c2w, self.num_cameras))
        self.translation.zero_()
        self.rotation.zero_()

    def freeze(self) -> None:
        """Keep the poses where they start: they are as good as they get, and no gradients need computing."""
        self.translation.requires_grad_(False)
        self.rotation.requires_grad_(False)

    def twists(self) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Corrections since the start in world axes, gauge taken out: translation in radii, rotation in radians."""
        to_world = self.start_c2w[:, :, :3].double()
        translation = (to_world @ self.translation.double()[..., None]).squeeze(-1)
        rotation = (to_world @ self.rotation.double()[..., None]).squeeze(-1)
        return fix_gauge(translation, rotation, self.start_c2w[:, :, 3].double())

    def _c2w_double(self) -> Float[Tensor, "n 4 4"]:
        """Current poses, OpenGL axes, homogeneous, in double precision."""
        if not self.learns:
            return homogeneous(self.base_c2w.double())
        motion = self._exponential(torch.cat(self.twists(), dim=-1))
        return homogeneous(motion) @ homogeneous(self.start_c2w.double())

    def c2w(self) -> Float[Tensor, "n 3 4"]:
        """Current poses of all views, OpenGL axes; differentiable."""
        return self._c2w_double()[:, :3].to(self.base_c2w.dtype)

    def w2c_opencv(self) -> Float[Tensor, "n 3 4"]:
        """World-to-camera of all views, OpenCV axes (as losses project with); differentiable."""
        return torch.linalg.inv(flip_camera_axes(self._c2w_double()))[:, :3].to(self.base_c2w.dtype)

    @torch.no_grad()
    def c2w_opencv_double(self) -> Float[np.ndarray, "n 4 4"]:
        """Current poses for export: OpenCV axes, homogeneous, double precision throughout."""
        return flip_camera_axes(self._c2w_double()).cpu().numpy()

    def forward(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b 3 4"]:
        """Corrections delta with c2w = base @ delta: exactly the identity with mode off.

        Args:
            indices: of training views.
        """
        if not self.learns:
            return torch.eye(4, dtype=self.base_c2w.dtype, device=self.base_c2w.device)[:3].repeat(len(indices), 1, 1)
        delta = self._base_w2c @ self._c2w_double()
        return delta[indices.long().to(delta.device), :3].to(self.base_c2w.dtype)

    def apply_to_raybundle(self, raybundle: RayBundle) -> None:
        """Move rays of training views, in place, from where the dataset's cameras see to where the current ones do.

        Args:
            raybundle: any shape; `camera_indices` number training views. None: no view's rays, left as they are.
        """
        if not self.learns or raybundle.camera_indices is None:
            return
        motions = self._c2w_double() @ self._base_w2c
        rays = raybundle.directions
        # index_select: its gradient is several times faster than that of indexing. Exporters hand over float indices.
        view = raybundle.camera_indices.long().reshape(-1).to(motions.device)
        motion = motions[:, :3].to(rays.dtype).index_select(0, view).view(*rays.shape[:-1], 3, 4)
        raybundle.directions = (motion[..., :3] * rays[..., None, :]).sum(dim=-1)
        raybundle.origins = (motion[..., :3] * raybundle.origins[..., None, :]).sum(dim=-1) + motion[..., 3]

    def apply_to_camera(self, camera: Cameras) -> Float[Tensor, "*b 3 4"]:
        """Camera-to-world of a camera with its correction.

        Args:
            camera: of the dataset; `metadata["cam_idx"]` numbers the training view that it is. The pose of one that
                isn't (see `training_view`) is returned unchanged.
        """
        c2w = camera.camera_to_worlds
        view = self.training_view(camera)
        if not self.learns or view is None:
            return c2w
        delta = homogeneous(self(view).double()).to(c2w.device)
        return (c2w.double() @ delta.view(*c2w.shape[:-2], 4, 4)).to(c2w.dtype)

    def training_view(self, camera: Cameras) -> Optional[Int[Tensor, "b"]]:
        """Which training views a camera is; None for a held-out view and for a camera that somebody steers.

        The viewer numbers its own camera too, by the view that was clicked last: what stands elsewhere than the dataset
        has that view is none.
        """
        index = (camera.metadata or {}).get("cam_idx")
        if index is None:
            return None
        view = torch.as_tensor(index).reshape(-1).long().to(self.base_c2w.device)
        c2w = camera.camera_to_worlds.reshape(-1, 3, 4).to(self.base_c2w)
        inside = bool(((view >= 0) & (view < self.num_cameras)).all())
        return view if inside and torch.allclose(c2w, self.base_c2w[view], atol=1e-6) else None

    def at_current_pose(self, camera: Cameras) -> Cameras:
        """The same camera, moved by `apply_to_camera`; without its metadata, so that nothing moves it again."""
        return Cameras(
            camera_to_worlds=self.apply_to_camera(camera).view(-1, 3, 4),
            fx=camera.fx,
            fy=camera.fy,
            cx=camera.cx,
            cy=camera.cy,
            width=camera.width,
            height=camera.height,
            distortion_params=camera.distortion_params,
            camera_type=camera.camera_type,
        )

    def depth_scales(self) -> Float[Tensor, "n"]:
        """Learnt factor from each view's integrated depth map to the unit-sphere world."""
        return self.depth_log_scale.exp()

    @torch.no_grad()
    def set_depth_scales(self, scales: Float[Tensor, "n"]) -> None:
        """Start the depth maps' scales from known values, all positive."""
        self.depth_log_scale.copy_(scales.log())

    def param_groups(self) -> Dict[str, List[nn.Parameter]]:
        """Parameters by learning rate. Depth scales belong to maps, not to poses: they learn with mode off too."""
        groups = {"pose_depth_scale": [self.depth_log_scale]}
        if self.learns:
            groups |= {"pose_rotation": [self.rotation], "pose_translation": [self.translation]}
        return groups

    def get_param_groups(self, param_groups: dict) -> None:
        """Add `param_groups()` to the model's."""
        param_groups.update(self.param_groups())

    def get_loss_dict(self, loss_dict: dict) -> None:
        """Add the penalty on corrections, where it has a weight."""
        if not self.learns or not (self.config.trans_l2_penalty or self.config.rot_l2_penalty):
            return
        translation, rotation = (twist.square().sum(dim=-1).mean().float() for twist in self.twists())
        loss_dict["pose_regularizer"] = (
            self.config.trans_l2_penalty * translation + self.config.rot_l2_penalty * rotation
        )

    @torch.no_grad()
    def get_metrics_dict(self, metrics_dict: dict) -> None:
        """Add how far the views have turned (degrees) and shifted (radii, beyond the turn) since the start."""
        if not self.learns:
            return
        translation, rotation = (twist.norm(dim=-1).float() for twist in self.twists())
        metrics_dict["pose_rotation_mean_deg"] = rotation.mean() * (180 / math.pi)
        metrics_dict["pose_rotation_max_deg"] = rotation.max() * (180 / math.pi)
        metrics_dict["pose_translation_mean"] = translation.mean()

    def _apply(self, fn: Any, recurse: bool = True) -> PmniPoseOptimizer:
        """Follow `.to(device)`: the viewer reads `.device`, which the parent sets once and for all."""
        super()._apply(fn, recurse)
        self.device = self.base_c2w.device
        return self


def _checked_poses(c2w: Float[Tensor, "n 3 4"], num_cameras: int) -> Float[Tensor, "n 3 4"]:
    """Poses in single precision, once they are known to be what they should be."""
    if tuple(c2w.shape) != (num_cameras, 3, 4):
        raise ValueError(f"poses: expected shape {(num_cameras, 3, 4)}, got {tuple(c2w.shape)}")
    rotation = c2w[:, :, :3].double()
    off = (rotation @ rotation.mT - torch.eye(3, dtype=rotation.dtype, device=c2w.device)).abs().amax(dim=(1, 2))
    # Written so that NaN fails too.
    wrong = ~((off < 1e-3) & (torch.linalg.det(rotation) > 0) & c2w[:, :, 3].isfinite().all(dim=-1))
    if wrong.any():
        raise ValueError(f"poses: view {int(wrong.nonzero()[0])} is no rigid motion (rotation and finite position)")
    return c2w.detach().float()
