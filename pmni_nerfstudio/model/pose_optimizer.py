# SPDX-License-Identifier: Apache-2.0
"""Pose optimization: SE(3) corrections about the object's center, used alike by training, viewer and export."""

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
    """Pose corrections."""

    _target: Type = field(default_factory=lambda: PmniPoseOptimizer)
    """Target class to instantiate."""
    mode: Literal["off", "SE3"] = "SE3"  # fewer than the parent
    """Pose optimization: SE3 optimizes rotation and translation of each view; off keeps the poses of the dataset."""
    trans_l2_penalty: float = 0.0
    """Weight of the mean squared translation from the initial poses, in squared scene radii."""
    rot_l2_penalty: float = 0.0
    """Weight of the mean squared rotation from the initial poses, in squared radians."""


class PmniPoseOptimizer(CameraOptimizer):
    """Pose corrections of all training views.

    With base_i the pose from which the dataset generates view i's rays and start_i the initial pose of the optimization,
    all camera-to-world,

        c2w_i = exp(gauge(A_i (translation_i, rotation_i))) start_i,        A_i: rotation from camera i to the world.

    A correction is a motion about the *world's origin*, the object's center, expressed in camera axes: `rotation` turns
    the object as seen by the camera, `translation` shifts it sideways (x, y) and in depth (z). A rotation about the
    camera's own center, many radii away, would move the object out of the frame. pypose computes the exponential map
    (see `choose_exponential`), and `fix_gauge` removes the gauge freedom by a linear projection of the twists.

    All users compose poses in the same way: `forward` returns delta = base^-1 c2w, by which the viewer and
    `apply_to_camera` multiply a camera's matrix from the right, and `apply_to_raybundle` moves rays in the world by
    c2w base^-1. Composition uses double precision: cameras may be fifteen radii away, and automatic mixed precision
    does not change doubles.

    Checkpoints contain `start_c2w` and the parameters, but not `base_c2w`: rays start at the base poses of the dataset
    in use, which may differ from those of the dataset that was trained on.

    Args:
        config: Configuration of the corrections.
        num_cameras: Number of training views.
        device: Device of the tensors.
        base_c2w: Camera-to-world poses of the dataset, OpenGL axes, unit-sphere world.

    Raises:
        ValueError: `base_c2w` has the wrong shape or contains a matrix that is not a rigid motion.
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
        # Not super().__init__(): it would create the parameter that ours replace.
        nn.Module.__init__(self)
        self.config = config
        self.num_cameras = num_cameras
        self.device = torch.device(device)
        base = _checked_poses(base_c2w, num_cameras).to(device)
        self.register_buffer("base_c2w", base, persistent=False)
        self.register_buffer("_base_w2c", torch.linalg.inv(homogeneous(base.double())), persistent=False)
        self.register_buffer("start_c2w", base.clone())
        self.depth_log_scale = nn.Parameter(torch.zeros(num_cameras, device=device))
        if self.enabled:
            self.translation = nn.Parameter(torch.zeros(num_cameras, 3, device=device))
            self.rotation = nn.Parameter(torch.zeros(num_cameras, 3, device=device))
            provider, self._exponential = choose_exponential()
            CONSOLE.log(f"Pose optimizer: SE(3) exponential map from {provider}.")

    @property
    def enabled(self) -> bool:
        """Whether poses can differ from those of the dataset."""
        return self.config.mode != "off"

    @torch.no_grad()
    def set_start(self, c2w: Float[Tensor, "n 3 4"]) -> None:
        """Replace the poses, for example by those of a registration or a Gauss-Newton step, and reset the corrections.

        Args:
            c2w: Camera-to-world poses, OpenGL axes, unit-sphere world.

        Raises:
            ValueError: The mode is off, or `c2w` has the wrong shape or contains a matrix that is not a rigid motion.
        """
        if not self.enabled:
            raise ValueError("set_start: the pose optimizer's mode is off; its poses are fixed")
        self.start_c2w.copy_(_checked_poses(c2w, self.num_cameras))
        self.translation.zero_()
        self.rotation.zero_()

    def freeze(self) -> None:
        """Stop gradient descent on the poses; `set_start` can still replace them."""
        self.set_start(self.c2w())  # without corrections, which are not evaluated any more
        self.translation.requires_grad_(False)
        self.rotation.requires_grad_(False)

    def twists(self) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Corrections in world axes without gauge freedom: translations in scene radii, rotation vectors in radians."""
        to_world = self.start_c2w[:, :, :3].double()
        translation = (to_world @ self.translation.double()[..., None]).squeeze(-1)
        rotation = (to_world @ self.rotation.double()[..., None]).squeeze(-1)
        return fix_gauge(translation, rotation, self.start_c2w[:, :, 3].double())

    def _c2w_double(self) -> Float[Tensor, "n 4 4"]:
        """Current camera-to-world poses, OpenGL axes, homogeneous, double precision."""
        if not self.enabled:
            return homogeneous(self.base_c2w.double())
        if not self.translation.requires_grad:  # frozen
            return homogeneous(self.start_c2w.double())
        motion = self._exponential(torch.cat(self.twists(), dim=-1))
        return homogeneous(motion) @ homogeneous(self.start_c2w.double())

    def c2w(self) -> Float[Tensor, "n 3 4"]:
        """Current camera-to-world poses of all views, OpenGL axes; differentiable."""
        return self._c2w_double()[:, :3].to(self.base_c2w.dtype)

    def w2c_opencv(self) -> Float[Tensor, "n 3 4"]:
        """Current world-to-camera poses of all views, OpenCV axes; differentiable."""
        return torch.linalg.inv(flip_camera_axes(self._c2w_double()))[:, :3].to(self.base_c2w.dtype)

    @torch.no_grad()
    def c2w_opencv_double(self) -> Float[np.ndarray, "n 4 4"]:
        """Current camera-to-world poses for export, OpenCV axes, homogeneous, double precision."""
        return flip_camera_axes(self._c2w_double()).cpu().numpy()

    def forward(self, indices: Int[Tensor, "b"]) -> Float[Tensor, "b 3 4"]:
        """Corrections delta with c2w = base @ delta; exactly the identity if the mode is off.

        Args:
            indices: Indices of training views.
        """
        if not self.enabled:
            return torch.eye(4, dtype=self.base_c2w.dtype, device=self.base_c2w.device)[:3].repeat(len(indices), 1, 1)
        delta = self._base_w2c @ self._c2w_double()
        return delta[indices.long().to(delta.device), :3].to(self.base_c2w.dtype)

    def apply_to_raybundle(self, raybundle: RayBundle) -> None:
        """Move the rays of training views from the base poses to the current poses, in place.

        Args:
            raybundle: Rays of any shape; `camera_indices` are indices of training views. Rays without them do not move.
        """
        if not self.enabled or raybundle.camera_indices is None:
            return
        motions = self._c2w_double() @ self._base_w2c
        rays = raybundle.directions
        # The gradient of index_select is several times faster than that of indexing. Exporters pass float indices.
        view = raybundle.camera_indices.long().reshape(-1).to(motions.device)
        motion = motions[:, :3].to(rays.dtype).index_select(0, view).view(*rays.shape[:-1], 3, 4)
        raybundle.directions = (motion[..., :3] * rays[..., None, :]).sum(dim=-1)
        raybundle.origins = (motion[..., :3] * raybundle.origins[..., None, :]).sum(dim=-1) + motion[..., 3]

    def apply_to_camera(self, camera: Cameras) -> Float[Tensor, "*b 3 4"]:
        """Corrected camera-to-world poses of cameras.

        Args:
            camera: Cameras; `metadata["cam_idx"]` is the index of the training view. The poses of cameras that are not
                training views (see `training_view`) are returned unchanged.
        """
        c2w = camera.camera_to_worlds
        view = self.training_view(camera)
        if not self.enabled or view is None:
            return c2w
        delta = homogeneous(self(view).double()).to(c2w.device)
        return (c2w.double() @ delta.view(*c2w.shape[:-2], 4, 4)).to(c2w.dtype)

    def training_view(self, camera: Cameras) -> Optional[Int[Tensor, "b"]]:
        """Indices of the training views that cameras belong to; None for other cameras.

        The viewer's own camera carries the index of the view that was clicked last, so the pose is compared with the
        dataset's as well.
        """
        index = (camera.metadata or {}).get("cam_idx")
        if index is None:
            return None
        view = torch.as_tensor(index).reshape(-1).long().to(self.base_c2w.device)
        c2w = camera.camera_to_worlds.reshape(-1, 3, 4).to(self.base_c2w)
        inside = bool(((view >= 0) & (view < self.num_cameras)).all())
        return view if inside and torch.allclose(c2w, self.base_c2w[view], atol=1e-6) else None

    def at_current_pose(self, camera: Cameras) -> Cameras:
        """Copy of a camera at its corrected pose, without metadata so that it is not corrected twice."""
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
        """Learned factor from each view's integrated depth map to the unit-sphere world."""
        return self.depth_log_scale.exp()

    @torch.no_grad()
    def set_depth_scales(self, scales: Float[Tensor, "n"]) -> None:
        """Initialize the scales of the depth maps with positive values."""
        self.depth_log_scale.copy_(scales.log())

    def param_groups(self) -> Dict[str, List[nn.Parameter]]:
        """Parameters by optimizer. The scales of the depth maps are optimized with mode off as well."""
        groups = {"pose_depth_scale": [self.depth_log_scale]}
        if self.enabled:
            groups |= {"pose_rotation": [self.rotation], "pose_translation": [self.translation]}
        return groups

    def get_param_groups(self, param_groups: dict) -> None:
        """Add `param_groups()` to a model's parameter groups."""
        param_groups.update(self.param_groups())

    def get_loss_dict(self, loss_dict: dict) -> None:
        """Add the penalty on the corrections if it has a weight."""
        if not self.enabled or not (self.config.trans_l2_penalty or self.config.rot_l2_penalty):
            return
        translation, rotation = (twist.square().sum(dim=-1).mean().float() for twist in self.twists())
        loss_dict["pose_regularizer"] = (
            self.config.trans_l2_penalty * translation + self.config.rot_l2_penalty * rotation
        )

    @torch.no_grad()
    def get_metrics_dict(self, metrics_dict: dict) -> None:
        """Add the size of the corrections: mean and maximum rotation in degrees, mean translation in scene radii."""
        if not self.enabled:
            return
        translation, rotation = (twist.norm(dim=-1).float() for twist in self.twists())
        metrics_dict["pose_rotation_mean_deg"] = rotation.mean() * (180 / math.pi)
        metrics_dict["pose_rotation_max_deg"] = rotation.max() * (180 / math.pi)
        metrics_dict["pose_translation_mean"] = translation.mean()

    def _apply(self, fn: Any, recurse: bool = True) -> PmniPoseOptimizer:
        """Update `device`, which the viewer reads, when the module is moved."""
        super()._apply(fn, recurse)
        self.device = self.base_c2w.device
        return self


def _checked_poses(c2w: Float[Tensor, "n 3 4"], num_cameras: int) -> Float[Tensor, "n 3 4"]:
    """Poses in single precision, after a check of their shape and rigidity."""
    if tuple(c2w.shape) != (num_cameras, 3, 4):
        raise ValueError(f"poses: expected shape {(num_cameras, 3, 4)}, got {tuple(c2w.shape)}")
    rotation = c2w[:, :, :3].double()
    error = (rotation @ rotation.mT - torch.eye(3, dtype=rotation.dtype, device=c2w.device)).abs().amax(dim=(1, 2))
    # Written so that NaN fails as well.
    wrong = ~((error < 1e-3) & (torch.linalg.det(rotation) > 0) & c2w[:, :, 3].isfinite().all(dim=-1))
    if wrong.any():
        raise ValueError(
            f"poses: view {int(wrong.nonzero()[0])} is not a rigid motion (a rotation and a finite position)"
        )
    return c2w.detach().float()
