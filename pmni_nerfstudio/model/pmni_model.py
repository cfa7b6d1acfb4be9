# SPDX-License-Identifier: Apache-2.0
"""PMNI's model: a signed distance field and camera poses, optimized by rendering normals and silhouettes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Tuple, Type, Union, cast

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.config_utils import to_immutable_dict
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import RGBRenderer
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor, nn

from pmni_nerfstudio.chunks import Chunks
from pmni_nerfstudio.data.split_views import SplitViews, split_views_of
from pmni_nerfstudio.errors import exit_on_error
from pmni_nerfstudio.fields.sdf_field import PmniField, PmniFieldConfig
from pmni_nerfstudio.geometry.reflectance_bias import ReflectanceBias
from pmni_nerfstudio.geometry.transforms import flip_camera_axes, nerfstudio_from_opencv
from pmni_nerfstudio.model.config_check import check_config
from pmni_nerfstudio.model.eval_images import comparison_images, error_image, image_metrics
from pmni_nerfstudio.model.grid_levels import MAX_FINER_GRID, room_for_blocks, with_matching_levels
from pmni_nerfstudio.model.initialization import Initialization, InitializationKind
from pmni_nerfstudio.model.loss_schedule import LossWeights
from pmni_nerfstudio.model.losses import NormalLossKind, mask_loss
from pmni_nerfstudio.model.marching import SurfaceGrid
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizer, PmniPoseOptimizerConfig
from pmni_nerfstudio.model.ray_rendering import GradientKind, Sampling, render_patches, render_rays
from pmni_nerfstudio.model.supervision import Supervision
from pmni_nerfstudio.threads import limit_threads

Outputs = Dict[str, Any]

SHARPNESS_RAMP_END = 0.9
"""Fraction of the schedule at which the minimum sharpness reaches its final value."""


@dataclass
class PmniModelConfig(ModelConfig):
    """Surface and pose model."""

    _target: Type = field(default_factory=lambda: PmniModel)
    """Target class to instantiate."""
    sdf_field: PmniFieldConfig = field(default_factory=PmniFieldConfig)  # nerfstudio's exporter requires this name
    """Signed distance field."""
    camera_optimizer: PmniPoseOptimizerConfig = field(default_factory=PmniPoseOptimizerConfig)
    """Pose corrections."""
    loss_weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses, per stage of the run."""
    blocks: int = 1
    """Number of overlapping blocks of the surface that are trained apart, each in a process of its own with a grid of its own,
    and then blended: for large scenes. 1: train the surface as a whole, unless that takes more than `max_memory`."""
    max_memory: Optional[str] = None
    """Memory that the grids of one training may take, such as 2G or 500M: where those of the surface as a whole would take more,
    it is trained in as many blocks as needed. By default unlimited."""
    block_jobs: Optional[int] = None
    """Number of blocks at the same time; by default one per GPU, or else per two cores, or on Ray as many as fit."""
    block_engine: Literal["local", "ray"] = "local"
    """Engine that trains the blocks: this machine, or the Ray cluster named by RAY_ADDRESS, or else a local instance."""
    normal_loss: NormalLossKind = "l2"
    """Difference between rendered and observed normals: l1 (sum of absolute differences), l2 (squared distance), or
    angular (angle in radians)."""
    gradients: Literal["auto", "surface", "directional", "analytic", "numerical"] = "auto"
    """Method that computes normals from the field in training: surface (six-point differences where the ray meets the
    surface), or at every sample and then averaged along the ray: directional (differences between the samples of a
    patch), analytic (exact gradient) or numerical (six-point differences). With patches of one pixel, directional falls
    back to numerical. auto: surface if training starts from a detailed surface, otherwise directional."""
    samples_per_ray: int = 0
    """Number of samples along a ray, around the surface. 0: 32 if normals are computed at the surface, otherwise 12."""
    window_reach_px: float = 8.0
    """The rays of a patch share sample planes if their depths differ by at most this many pixel footprints."""
    start: Literal["auto", "surface", "hull", "sweep", "sphere"] = "auto"
    """Initial surface if there is no registration: surface (integrated from the normals within the visual hull), hull
    (visual hull of the masks), sweep (plane sweep, for concave scenes and captures from one side), or sphere (the field's
    default). auto: hull if poses are optimized; otherwise surface, or sweep if the views disagree on their hull."""
    initial_sdf: Optional[Path] = None
    """File (.npy) of signed distances on a grid of n^3 vertices over the cube of the unit sphere, in its radii, to start
    from at given poses instead of `start`. The surface counts as detailed."""
    hull_resolution: int = 97
    """Number of grid vertices per axis of the visual hull."""
    hull_votes: int = 1
    """Number of views that have to see a point outside their mask to exclude it from the visual hull of `start`. Use more
    than 1 if poses or masks are unreliable. Registration, and surfaces integrated from the normals, have votes of their
    own."""
    registration: bool = False
    """Find the initial poses and surface by registration before the first step; `registered_poses` determines what
    happens to the poses afterwards. If disabled, the poses of the dataset are optimized by gradient descent, and `start`
    determines the initial surface."""
    train_anyway: bool = False
    """Train even if the registration failed, that is, if its poses and surface cannot be trusted."""
    refine_normals: bool = True
    """Solve the normals again before training, with the shadows and the interreflection of the initial surface, if the scene
    was made by `pmni photometric` and its images are still there."""
    registered_poses: Literal["fixed", "gauss-newton", "gradient"] = "gauss-newton"
    """Optimization of registered poses during training: fixed (none), gauss-newton (a step of the registration's normal
    bundle adjustment against the current surface every `steps_per_pose_step` steps), or gradient (gradient descent).
    Mean rotation error on a bunny at 306x256 pixels: 0.024, 0.013 and 0.20 deg."""
    steps_per_pose_step: int = 50
    """Number of training steps between Gauss-Newton steps of the poses."""
    registration_seed: int = 0
    """Seed of the random points that registration and Gauss-Newton steps draw."""
    inv_s_floor: Tuple[float, float] = (100.0, 4000.0)
    """Minimum sharpness of the rendered surface at the start and at the end of the run, with geometric interpolation in
    between. The sharpness is the inverse standard deviation of the density, per scene radius."""
    detailed_inv_s_floor: float = 1000.0
    """Minimum sharpness at the start if training does not start from a visual hull; replaces the first value of
    `inv_s_floor`, at which the blurred surface would lose detail that is already there."""
    detailed_lr_factor: float = 0.1
    """Factor on the field's learning rate if training does not start from a visual hull, because nothing has to be carved
    away."""
    schedule_steps: int = 0
    """Number of steps of the sharpness and learning rate schedules if training starts from a registration or from a
    surface integrated from the normals. 0: chosen from the size of the normal maps. With other initial surfaces the
    schedules take `max_num_iterations`."""
    converged_normals_deg: float = 0.15
    """Early stopping: once the sharpness schedule is complete, training ends when the surface normals change by less than
    this many degrees within `steps_per_grid_update` steps, and the poses by less than `converged_poses_deg`. 0: always
    train for `max_num_iterations`."""
    converged_poses_deg: float = 0.005
    """Early stopping: mean rotation of the poses, in degrees, below which they have converged (see
    `converged_normals_deg`)."""
    grid_resolution: int = 128
    """Number of cells per axis of the occupancy grid."""
    steps_per_grid_update: int = 20
    """Number of training steps between updates of the occupancy grid."""
    enable_collider: bool = False
    """Unused: rays are clipped to the unit sphere."""
    loss_coefficients: Dict[str, float] = to_immutable_dict({})
    """Unused: see `loss_weights`."""
    eval_num_rays_per_chunk: int = 1 << 15
    """Number of rays that evaluation renders at once."""


class PmniModel(Model):
    """PMNI's surface and pose model (Pei et al., CVPR 2025) with SuperNormal's patches (Cao and Taketomi, CVPR 2024).

    Ray bundles with `camera_indices` belong to training views and are moved to the optimized poses; bundles without are
    rendered as they are. In training, the rays of a patch (metadata `patch_size`) are rendered together.
    """

    config: PmniModelConfig
    inlier_views: Tensor
    registered_c2w: Tensor

    def populate_modules(self) -> None:
        """Build field, poses, occupancy grid and losses for the training views.

        Raises:
            SystemExit: The configuration does not fit the data; with code 1, after one line on stderr.
        """
        super().populate_modules()
        if not torch.cuda.is_available():
            limit_threads()
        self.views = split_views_of(self.kwargs["metadata"])
        self.camera_optimizer: PmniPoseOptimizer = self.config.camera_optimizer.setup(
            num_cameras=self.num_train_data, device="cpu", base_c2w=nerfstudio_from_opencv(self.views.c2w)
        )
        self.uses_registration = self.config.registration and self.camera_optimizer.enabled
        with exit_on_error():
            check_config(self.config, self.views, self.uses_registration)
        detailed = self.uses_registration or self.initial_surface in ("auto", "surface", "file")
        views = self.views
        levels = with_matching_levels(self.config.sdf_field, views.K, views.c2w, views.close_ups, detailed)
        blocks = room_for_blocks(self.config.blocks, self.config.max_memory, levels)
        self.field = cast(PmniField, replace(levels, blocks=blocks).setup())
        if self.uses_registration and self.config.registered_poses != "gradient":
            self.camera_optimizer.freeze()
        n = self.config.hull_resolution
        self.grid = SurfaceGrid(self.config.grid_resolution * min(blocks, MAX_FINER_GRID), torch.ones(n, n, n))
        self.ray_chunks = Chunks(self.config.eval_num_rays_per_chunk, "rays")
        self.supervision = Supervision(self.views, self.config.normal_loss)
        self.renderer_rgb = RGBRenderer(background_color="random")
        self.fraction = 0.0
        self.initialization_kind: InitializationKind = "hull"
        self.registration_statistics: Optional[Dict[str, Any]] = None
        """Contents of registration.json; None without registration."""
        self.intrinsics_change: Tuple[float, float, float] = (1.0, 0.0, 0.0)
        """Change of the given intrinsics by registration: factor on the focal lengths, shift of the principal points in
        pixels. `training.corrections` applies it."""
        self.reflectance_bias: Tuple[float, ...] = ReflectanceBias().coefficients
        """Coefficients of the `ReflectanceBias` that is removed from the given normals, likewise."""
        self.refined_normals: Optional[Tensor] = None
        """Normals (p, 3) float16 that replace those of all pixels of the training views that have one, likewise."""
        self.register_buffer("inlier_views", torch.ones(self.num_train_data, dtype=torch.bool))
        # Poses of the initialization, OpenGL axes; the pose optimizer's initial poses change with each pose step.
        self.register_buffer("registered_c2w", self.camera_optimizer.base_c2w.clone())

    # ---- initialization and schedule ----

    def warm_start(self, initialization: Initialization) -> None:
        """Take over initial poses and surface before the first step."""
        self.initialization_kind = initialization.kind
        if initialization.inlier_views is not None:
            self.inlier_views.copy_(torch.from_numpy(initialization.inlier_views))
        if self.camera_optimizer.enabled:
            self.registered_c2w.copy_(nerfstudio_from_opencv(initialization.c2w))
            self.camera_optimizer.set_start(self.registered_c2w)
        sdf = initialization.sdf.to(self.device)
        if self.uses_registration or self.config.start != "sphere":
            self.field.fit(sdf)
            detail, block = initialization.detail, self.field.detail
            if detail is not None and block is not None:
                cube, of_cube = detail.cube, torch.from_numpy(detail.surface.sdf).to(sdf)
                block.place(torch.from_numpy(cube.center).to(sdf), cube.half, cube.half * of_cube)
        hull = nn.functional.interpolate(sdf[None, None], self.grid.hull.shape, mode="trilinear", align_corners=True)
        self.grid.hull.copy_(hull[0, 0])
        if self.field.blocks is not None:  # on this finer grid, only near the surface
            self.grid.seed(sdf)
        self.grid.refresh(self.field.sdf, everywhere=self.field.blocks is None)
        weights = self.config.loss_weights
        if any(weights.sdf_on_points) or any(weights.point_consistency):
            self.camera_optimizer.set_depth_scales(
                self.supervision.initial_depth_scales(self.camera_optimizer, self.grid)
            )

    def change_views(self, views: SplitViews) -> None:
        """Take over other normals and intrinsics of the training views."""
        self.views = views
        self.supervision = Supervision(self.views, self.config.normal_loss)

    def inlier_indices(self) -> List[int]:
        """Indices of the training views that the initialization did not reject; only these are trained on."""
        return self.inlier_views.nonzero()[:, 0].tolist()

    def get_extra_state(self) -> Dict[str, Any]:
        """State besides the tensors, for checkpoints."""
        return {
            "initialization": self.initialization_kind,
            "registration": json.dumps(self.registration_statistics),
            "intrinsics_change": self.intrinsics_change,
            "reflectance_bias": self.reflectance_bias,
            "refined_normals": self.refined_normals,
        }

    def set_extra_state(self, state: Dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            RuntimeError: An earlier version wrote the checkpoint.
        """
        if not isinstance(state, dict) or "initialization" not in state:
            raise RuntimeError("an earlier version of this program wrote the checkpoint")
        self.initialization_kind = state["initialization"]
        self.registration_statistics = json.loads(state.get("registration", "null"))
        self.intrinsics_change = state.get("intrinsics_change", (1.0, 0.0, 0.0))
        self.reflectance_bias = state.get("reflectance_bias", ReflectanceBias().coefficients)
        self.refined_normals = state.get("refined_normals")

    @property
    def initial_surface(self) -> Literal["auto", "hull", "surface", "sweep", "file"]:
        """Initial surface to find at given poses: `config.start`, but always a hull for a sphere or rough poses."""
        if self.config.initial_sdf is not None:
            return "file"
        # With rough poses, views disagree on the hull and on the normals because of the poses.
        if self.config.start == "sphere" or (self.config.start == "auto" and self.camera_optimizer.enabled):
            return "hull"
        return self.config.start

    @property
    def gradients(self) -> GradientKind:
        """Method by which normals are computed in training: `config.gradients` with auto resolved."""
        if self.config.gradients == "auto":
            return "surface" if self.initialization_kind == "surface" else "directional"
        return self.config.gradients

    def set_fraction(self, fraction: float) -> None:
        """Set everything that depends on the completed fraction of the schedule, from 0 to 1."""
        self.fraction = fraction
        self.field.set_progress(1.0 if self.initialization_kind == "surface" else fraction)
        first, last = self.config.inv_s_floor
        if self.initialization_kind != "hull":
            first = self.config.detailed_inv_s_floor
        self.field.set_min_inv_s(first * (last / first) ** min(fraction / SHARPNESS_RAMP_END, 1.0))

    def get_param_groups(self) -> Dict[str, List[nn.Parameter]]:
        """Parameters by optimizer."""
        return {**self.field.param_groups(), **self.camera_optimizer.param_groups()}

    # ---- rendering ----

    @torch.no_grad()
    def sample_half_width(self) -> Float[Tensor, ""]:
        """Distance before and behind a surface that is sampled: the tails of the density, and a fraction of a voxel."""
        return 4.0 / self.field.inv_s() + 0.7 * self.field.active_voxel

    def get_outputs(self, ray_bundle: Union[RayBundle, Cameras]) -> Outputs:
        """Render rays: patches in training, single rays in evaluation."""
        assert isinstance(ray_bundle, RayBundle)
        self.camera_optimizer.apply_to_raybundle(ray_bundle)
        samples = self.config.samples_per_ray or (32 if self.gradients == "surface" else 12)
        depth_gradients = self.config.loss_weights.weights_at(self.fraction)["depth"] > 0
        sampling = Sampling(samples, self.sample_half_width(), self.config.window_reach_px, depth_gradients)
        if self.training and "patch_size" in ray_bundle.metadata:
            return render_patches(ray_bundle, self.field, self.grid, sampling, self.gradients)
        return render_rays(ray_bundle, self.field, self.grid, sampling)

    @torch.no_grad()
    def render_camera(self, camera: Cameras, obb_box: Union[OrientedBox, None] = None) -> Outputs:
        """Render a camera, at its optimized pose if it belongs to a training view (metadata `cam_idx`).

        Returns:
            The outputs of `render_rays`, and `normals_camera`: unit normals in the camera's OpenCV axes, zero off the
            object.
        """
        return self._render_camera(camera, obb_box)[0]

    def _render_camera(self, camera: Cameras, obb_box: Union[OrientedBox, None]) -> Tuple[Outputs, RayBundle]:
        """Outputs of `render_camera`, and the rays (H, W)."""
        posed = self.camera_optimizer.at_current_pose(camera).to(self.device)
        bundle = posed.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        outputs = self.get_outputs_for_camera_ray_bundle(bundle)
        world_from_camera = flip_camera_axes(posed.camera_to_worlds[0])[:, :3].to(outputs["normals"])
        on_surface = outputs["accumulation"] > 0.5
        outputs["normals_camera"] = torch.where(on_surface, (outputs["normals"] * 2 - 1) @ world_from_camera, 0.0)
        return outputs, bundle

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Union[OrientedBox, None] = None) -> Outputs:
        """Render a camera for the viewer.

        Returns:
            The outputs of `render_camera`, and `angular_error`: an image of the angles between the rendered normals and
            those observed in the training view nearest to the camera.

        Raises:
            SystemExit: The GPU's memory is exhausted even with the fewest rays at once; with code 1, after one line on
                stderr.
        """
        with exit_on_error():  # nerfstudio's programs, which do not handle our errors, call this
            outputs, rays = self._render_camera(camera, obb_box)
        center, on_surface = rays.origins[0, 0], outputs["accumulation"][..., 0] > 0.5
        error_deg = self.supervision.nearest_view_error_deg(
            rays.origins[on_surface] + outputs["depth"][on_surface] * rays.directions[on_surface],
            outputs["normals"][on_surface] * 2 - 1,
            center,
            self.camera_optimizer,
            self.grid,
        )
        outputs["angular_error"] = error_image(error_deg, on_surface)
        if self.camera_optimizer.training_view(camera) is None:
            # The viewer hides camera frusta by this depth: the background must lie behind all cameras.
            background = center.norm() + self.camera_optimizer.base_c2w[:, :, 3].norm(dim=-1).max()
            outputs["depth"] = torch.where(on_surface[..., None], outputs["depth"], background)
        return outputs

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> Outputs:
        """Render the rays of a whole image, which already have their final pose.

        Raises:
            PmniError: The GPU's memory is exhausted even with the fewest rays at once.
        """
        camera_ray_bundle.camera_indices = None
        render = super().get_outputs_for_camera_ray_bundle

        def render_in_chunks(rays: int) -> Outputs:
            self.config.eval_num_rays_per_chunk = rays
            return render(camera_ray_bundle)

        return self.ray_chunks.run(render_in_chunks)

    # ---- losses and metrics ----

    def get_loss_dict(self, outputs: Outputs, batch: Dict[str, Tensor], metrics_dict=None) -> Dict[str, Tensor]:
        """Weighted losses by name, those with a weight at this stage of the run.

        In evaluation only the mask loss is computed, because single rays have no gradients.
        """
        if not self.training:
            accumulation, mask = outputs["accumulation"][:, 0], batch["mask"].to(self.device)[:, 0]
            unknown = batch.get("unknown")
            known = torch.ones_like(mask) if unknown is None else 1 - unknown.to(mask)[:, 0]
            return {"mask_loss": mask_loss(accumulation, mask, known)}
        weights = self.config.loss_weights.weights_at(self.fraction)
        losses = self.supervision.losses(outputs, batch, weights, self.field, self.camera_optimizer, self.grid)
        loss_dict = {f"{name}_loss": weights[name] * loss for name, loss in losses.items()}
        self.camera_optimizer.get_loss_dict(loss_dict)
        return loss_dict

    def get_metrics_dict(self, outputs: Outputs, batch: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Sharpness of the surface and size of the pose corrections."""
        metrics = {"inv_s": self.field.inv_s().detach()}
        self.camera_optimizer.get_metrics_dict(metrics)
        return metrics

    @torch.no_grad()
    def get_image_metrics_and_images(
        self, outputs: Outputs, batch: Dict[str, Tensor]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Metrics and images of a rendered view: see `image_metrics` and `comparison_images`."""
        observed, mask = batch["normal"].to(outputs["normals_camera"]), batch["mask"].to(outputs["depth"]) > 0.5
        error_deg, metrics = image_metrics(outputs, observed, mask)
        return metrics, comparison_images(outputs, observed, mask, error_deg)
