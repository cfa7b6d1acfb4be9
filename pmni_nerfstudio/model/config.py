# SPDX-License-Identifier: Apache-2.0
"""What can be set of the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Literal, Tuple, Type

from nerfstudio.configs.config_utils import to_immutable_dict
from nerfstudio.models.base_model import ModelConfig

from pmni_nerfstudio.fields.sdf_field import PmniFieldConfig
from pmni_nerfstudio.model.loss_schedule import LossWeights
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizerConfig


def _model_class() -> Type:
    from pmni_nerfstudio.model.pmni_model import PmniModel  # it imports this module

    return PmniModel


@dataclass
class PmniModelConfig(ModelConfig):
    """Surface and poses from normal maps."""

    _target: Type = field(default_factory=_model_class)
    """Model class."""
    # nerfstudio's own exporter looks for this name.
    sdf_field: PmniFieldConfig = field(default_factory=PmniFieldConfig)
    """The signed distance field."""
    camera_optimizer: PmniPoseOptimizerConfig = field(default_factory=PmniPoseOptimizerConfig)
    """The poses."""
    loss_weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses by stage of the run."""
    normal_loss: Literal["l1", "l2", "angular"] = "l2"
    """How rendered and observed normals are compared."""
    gradients: Literal["auto", "surface", "directional", "analytic", "numerical"] = "auto"
    """Gradient of the field in training: six-point where the ray meets the surface (as pictures are rendered), or at
    every sample along the ray: by differences between a patch's samples, exact, or six-point. Single rays (patch
    size 1) take six-point ones in the place of directional ones. auto: surface where training starts from a surface
    with its detail, else directional."""
    samples_per_ray: int = 0
    """Samples along a ray, spread about the surface that it meets. 0: 32 where gradients are taken at the surface and
    samples are cheap, else 12."""
    window_reach_px: float = 8.0
    """A patch's rays share their samples where their surfaces lie within this many pixels' widths in depth."""
    start: Literal["auto", "surface", "hull", "sweep", "sphere"] = "auto"
    """First surface without a registration: one integrated from the normals within the masks' visual hull; that hull;
    a plane sweep over all depths, for what the hull can't show (courtyards, scenes seen from one side); or the sphere
    that the field is initialised to. auto: the hull where poses are learnt; where they are fixed the surface, or the
    sweep if the views contradict each other on their hull."""
    hull_resolution: int = 97
    """Grid vertices per axis of the visual hull."""
    hull_votes: int = 1
    """A point is outside the hull if this many views say so; more than 1 where poses or masks are doubtful."""
    registration: bool = False
    """Find the poses and the first surface by registration before the first step; `registered_poses` says what becomes
    of the poses then. Off: the dataset's are the start, learnt by gradient descent, and `start` says what the first
    surface is."""
    registered_poses: Literal["fixed", "gauss-newton", "gradient"] = "gauss-newton"
    """What training does with poses after a registration: keep them; move them by the registration's own step against
    the surface as it is, every `steps_per_pose_step` steps; or learn them by gradient descent. (A bunny at 306x256:
    .024, .013 and .20 deg.)"""
    steps_per_pose_step: int = 50
    """Training steps between Gauss-Newton steps of the poses."""
    registration_seed: int = 0
    """Of the points that registration draws."""
    inv_s_floor: Tuple[float, float] = (100.0, 4000.0)
    """Least sharpness of the rendered surface (one over the density's standard deviation, per scene radius) at the
    start and at the end of the run; between them it grows geometrically."""
    detailed_inv_s_floor: float = 1000.0
    """The first of `inv_s_floor` where training doesn't start from a hull: detail is there from the start, and wide
    rendering mixes it with what stands beside it."""
    detailed_lr_factor: float = 0.1
    """On the field's learning rate where training doesn't start from a hull: there is nothing to be carved any more."""
    schedule_steps: int = 0
    """Steps over which sharpness and learning rates run their course, where training starts from a registration or from
    a surface integrated from the normals: only detail is left to find. 0: as many as fit the maps. Other starts take
    `max_num_iterations`."""
    converged_normals_deg: float = 0.15
    """Training ends, once sharpness has run its course, when the surface's normals turn by less than this in
    `steps_per_grid_update` steps, and poses by less than the next. 0: it ends with `max_num_iterations` only."""
    converged_poses_deg: float = 0.005
    """See `converged_normals_deg`."""
    grid_resolution: int = 128
    """Cells per axis of the occupancy grid."""
    steps_per_grid_update: int = 20
    """Training steps between refreshes of the occupancy grid."""
    enable_collider: bool = False
    """Unused: rays are bounded by the unit sphere."""
    loss_coefficients: Dict[str, float] = to_immutable_dict({})
    """Unused: `loss_weights` has them."""
    eval_num_rays_per_chunk: int = 1 << 15
    """Rays per chunk in evaluation."""
