# SPDX-License-Identifier: Apache-2.0
"""The model: renders normals, depth and accumulation of a signed distance field, and learns it with the poses."""

from __future__ import annotations

from typing import Any, Dict, List, Literal, Optional, Tuple, Union, cast

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.model_components.renderers import RGBRenderer
from nerfstudio.models.base_model import Model
from torch import Tensor, nn

from pmni_nerfstudio.chunks import Chunks
from pmni_nerfstudio.data.split_views import split_views_of
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.fields.sdf_field import PmniField
from pmni_nerfstudio.geometry.transforms import nerfstudio_from_opencv
from pmni_nerfstudio.model import rendering
from pmni_nerfstudio.model.config import PmniModelConfig
from pmni_nerfstudio.model.eval_images import error_picture, image_metrics, image_pictures
from pmni_nerfstudio.model.grid_levels import with_fitting_levels
from pmni_nerfstudio.model.losses import mask_loss
from pmni_nerfstudio.model.marching import SurfaceGrid
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizer
from pmni_nerfstudio.model.supervision import Supervision
from pmni_nerfstudio.threads import settle_threads
from pmni_nerfstudio.training.course import SHARP_AT, Course
from pmni_nerfstudio.training.initialization import Start, StartKind
from pmni_nerfstudio.training.random_state import random_state

Outputs = Dict[str, Any]


class PmniModel(Model):
    """PMNI's surface and pose model (Peng et al., CVPR 2025), with SuperNormal's patches (Cao and Taketomi, CVPR 2024).

    Bundles whose rays carry `camera_indices` are of training views and move to their optimised poses; bundles without
    are rendered as they are. Bundles of training patches (metadata `patch_size`) are rendered together in training.
    """

    config: PmniModelConfig
    trusted: Tensor
    registered_c2w: Tensor

    def populate_modules(self) -> None:
        """Field, poses, occupancy grid and losses, from the training split's scene."""
        super().populate_modules()
        if not torch.cuda.is_available():
            settle_threads()
        self.views = split_views_of(self.kwargs["metadata"])
        self.camera_optimizer: PmniPoseOptimizer = self.config.camera_optimizer.setup(
            num_cameras=self.num_train_data, device="cpu", base_c2w=nerfstudio_from_opencv(self.views.c2w)
        )
        self.registers = self.config.registration and self.camera_optimizer.learns
        detailed = self.registers or self.start_wanted in ("auto", "surface")
        self.field = cast(
            PmniField, with_fitting_levels(self.config.sdf_field, self.views.K, self.views.c2w, detailed).setup()
        )
        if self.registers and self.config.registered_poses != "gradient":
            self.camera_optimizer.freeze()
        n = self.config.hull_resolution
        self.grid = SurfaceGrid(self.config.grid_resolution, torch.ones(n, n, n))
        self.ray_chunks = Chunks(self.config.eval_num_rays_per_chunk, "rays")
        self.supervision = Supervision(self.views, self.config.normal_loss)
        self.renderer_rgb = RGBRenderer(background_color="random")
        self.fraction = 0.0
        self.start_kind: StartKind = "hull"
        self.course: Optional[Course] = None
        self.resumed: Optional[Dict[str, Any]] = None
        # What a registration left out of its surface is left out of training too.
        self.register_buffer("trusted", torch.ones(self.num_train_data, dtype=torch.bool))
        # What the pose optimizer was first given; its own start moves with each step of the poses.
        self.register_buffer("registered_c2w", self.camera_optimizer.base_c2w.clone())
        with exit_on_error():
            self._check_config()

    def _check_config(self) -> None:
        depths = self.supervision.has_depths
        if not self.views.has_poses and not self.registers:
            raise PmniError(f"{self.views.root}: has no camera poses: train it with pmni and its registration")
        needy = [
            n for n in ("sdf_on_points", "point_consistency", "depth") if any(getattr(self.config.loss_weights, n))
        ]
        if needy and not depths:
            raise PmniError(
                f"loss-weights.{needy[0]}: needs depth maps, which `pmni integrate {self.views.root}` makes"
            )

    # ---- start, schedule ----

    def warm_start(self, start: Start) -> None:
        """Takes over poses and surface before the first step: the hull's, or what a registration found."""
        self.start_kind = start.kind
        if start.trusted is not None:
            self.trusted.copy_(torch.from_numpy(start.trusted))
        if self.camera_optimizer.learns:
            self.registered_c2w.copy_(nerfstudio_from_opencv(start.c2w))
            self.camera_optimizer.set_start(self.registered_c2w)
        sdf = start.sdf.to(self.device)
        if self.registers or self.config.start != "sphere":
            self.field.fit(sdf)
        hull = nn.functional.interpolate(sdf[None, None], self.grid.hull.shape, mode="trilinear", align_corners=True)
        self.grid.hull.copy_(hull[0, 0])
        self.grid.refresh(self.field.sdf, everywhere=True)
        weights = self.config.loss_weights
        if any(weights.sdf_on_points) or any(weights.point_consistency):
            self.camera_optimizer.set_depth_scales(
                self.supervision.initial_depth_scales(self.camera_optimizer, self.grid)
            )

    def get_extra_state(self) -> Dict[str, Any]:
        """For the checkpoint: what a run that goes on from it needs besides tensors, to be the run that never stopped."""
        course = None if self.course is None else self.course.state()
        return {"start": self.start_kind, "course": course, "random": random_state()}

    def set_extra_state(self, state: Dict[str, Any]) -> None:
        """From a checkpoint.

        Raises:
            RuntimeError: an earlier version wrote it.
        """
        if not isinstance(state, dict):
            raise RuntimeError("the checkpoint is an earlier version's")
        self.start_kind = state["start"]
        self.resumed = state

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        """See `Course`."""
        trainer = training_callback_attributes.trainer
        assert trainer is not None
        self.course = Course(self, trainer, self.resumed)
        return self.course.callbacks()

    @property
    def start_wanted(self) -> Literal["auto", "hull", "surface", "sweep"]:
        """The configuration's, where a registration or the masks are not all there is to ask."""
        # On rough poses views contradict each other on the hull for other reasons, and so do their normals.
        if self.config.start == "sphere" or (self.config.start == "auto" and self.camera_optimizer.learns):
            return "hull"
        return self.config.start

    @property
    def gradients(self) -> Literal["surface", "directional", "analytic", "numerical"]:
        """The configuration's, settled by what training starts from."""
        if self.config.gradients == "auto":
            return "surface" if self.start_kind == "surface" else "directional"
        return self.config.gradients

    @property
    def samples_per_ray(self) -> int:
        """The configuration's, settled by `gradients`."""
        return self.config.samples_per_ray or (32 if self.gradients == "surface" else 12)

    def set_fraction(self, fraction: float) -> None:
        """Sets all that depends on how far the run is, 0 to 1."""
        self.fraction = fraction
        self.field.set_progress(1.0 if self.start_kind == "surface" else fraction)
        first, last = self.config.inv_s_floor
        if self.start_kind != "hull":
            first = self.config.detailed_inv_s_floor
        self.field.set_min_inv_s(first * (last / first) ** min(fraction / SHARP_AT, 1.0))

    @torch.no_grad()
    def half_width(self) -> Float[Tensor, ""]:
        """How far before and behind a surface rays are sampled: where the logistic density dies, and a voxel's share.

        A tensor: a number would make every step wait for the GPU.
        """
        return 4.0 / self.field.inv_s() + 0.7 * self.field.active_voxel

    def get_param_groups(self) -> Dict[str, List[nn.Parameter]]:
        """Parameters by optimizer."""
        return {**self.field.param_groups(), **self.camera_optimizer.param_groups()}

    # ---- rendering ----

    def get_outputs(self, ray_bundle: Union[RayBundle, Cameras]) -> Outputs:
        """Renders rays: patches in training, single rays in evaluation."""
        assert isinstance(ray_bundle, RayBundle)
        self.camera_optimizer.apply_to_raybundle(ray_bundle)
        if self.training and "patch_size" in ray_bundle.metadata:
            return self._render_patches(ray_bundle)
        return self._render_rays(ray_bundle)

    def _render_patches(self, bundle: RayBundle) -> Outputs:
        """World normals (not normalised), accumulation and depths of patches, differentiable in field and poses."""
        side = int(bundle.metadata["patch_size"].view(-1)[0])
        rays = side * side
        # Single rays have no neighbours to take differences with.
        gradients = "numerical" if side == 1 and self.gradients == "directional" else self.gradients
        hits = self.grid.trace(bundle.origins.detach(), bundle.directions.detach())
        norms = bundle.metadata["directions_norm"].view(-1, rays)
        origins, directions = bundle.origins.view(-1, rays, 3), bundle.directions.view(-1, rays, 3)
        footprint = (hits.t * bundle.pixel_area[:, 0].sqrt()).view(-1, rays).amax(dim=1)
        planes = rendering.patch_planes(
            hits,
            norms,
            self.samples_per_ray,
            self.half_width(),
            self.config.window_reach_px * footprint,
            jitter=True,
        )
        # Work on the patches that meet the surface, and on no others: masks are judged without samples.
        chosen = planes.meets
        distances = planes.z[chosen][:, None, :] * norms[chosen][..., None]
        positions = origins[chosen][:, :, None] + distances[..., None] * directions[chosen][:, :, None]
        square = (len(positions), side, side, self.samples_per_ray)
        sdf, slopes = self._sdf_and_gradients(positions.view(*square, 3), gradients)
        weights = rendering.neus_weights(sdf, self.field.inv_s()).view_as(distances)
        depth, accumulation = rendering.along_rays(weights, rendering.between_samples(distances)[..., None])
        if slopes is None:
            surface = origins[chosen] + depth.detach() * directions[chosen]
            slopes = normals = self.field.numerical_gradient(surface, self.field.active_voxel)
        else:
            normals, _ = rendering.along_rays(weights, slopes.view_as(positions))

        index = torch.nonzero(chosen.repeat_interleave(rays))[:, 0]
        count = len(bundle.origins)

        def spread(values: Float[Tensor, "p k2 c"]) -> Float[Tensor, "r c"]:
            return values.new_zeros(count, values.shape[-1]).index_copy(0, index, values.reshape(len(index), -1))

        return {
            "normal_world": spread(normals),
            "accumulation": spread(accumulation[..., None]),
            "depth": spread(depth),
            "valid": planes.valid.view(-1, 1),
            "near": hits.near[:, None],
            "lowest": hits.lowest[:, None],
            "gradients": slopes.reshape(-1, 3),
            "surface": bundle.origins + hits.t[:, None] * bundle.directions,
            "hit": hits.hit[:, None],
            "origins": bundle.origins,
            "directions": bundle.directions,
            "directions_norm": bundle.metadata["directions_norm"],
        }

    def _sdf_and_gradients(
        self, positions: Float[Tensor, "p k k s 3"], kind: str
    ) -> Tuple[Float[Tensor, "p k k s"], Optional[Float[Tensor, "p k k s 3"]]]:
        """Signed distances at samples, and gradients there, unless they are to be taken at the surface."""
        if kind == "analytic":
            return self.field.sdf_and_gradient(positions)
        sdf = self.field.sdf(positions)
        if kind == "surface":
            return sdf, None
        if kind == "numerical":
            return sdf, self.field.numerical_gradient(positions, self.field.active_voxel)
        return sdf, rendering.directional_gradients(sdf, positions)

    @torch.no_grad()
    def _render_rays(self, bundle: RayBundle) -> Outputs:
        """The outputs that viewer and exporters ask for; `depth` is the distance along the unit ray.

        Where a ray meets no surface, depth lies behind the scene: nerfstudio's TSDF takes what no ray has passed for
        solid, and a depth of zero for unknown.
        """
        hits = self.grid.trace(bundle.origins, bundle.directions)
        index = torch.nonzero(hits.near)[:, 0]
        origins, directions = bundle.origins[index], bundle.directions[index]
        half = self.half_width()
        offsets = half * torch.linspace(-1.0, 1.0, self.samples_per_ray, device=origins.device)
        distances = hits.t[index][:, None] + offsets
        sdf = self.field.sdf(origins[:, None] + distances[..., None] * directions[:, None])
        weights = rendering.neus_weights(sdf, self.field.inv_s())
        mean, visible = rendering.along_rays(weights, rendering.between_samples(distances)[..., None])
        surface = origins + mean * directions
        gradient = self.field.numerical_gradient(surface, self.field.active_voxel)
        count = len(bundle.origins)
        # Weights sum to at most 1 but for rounding, and pictures must stay in [0, 1].
        accumulation = origins.new_zeros(count).index_copy(0, index, visible.clamp(max=1.0))
        behind = bundle.origins.norm(dim=-1) + 3**0.5  # the corners of the cube about the unit sphere
        depth = behind.index_copy(0, index, torch.where(visible > 0.5, mean[:, 0], behind[index]))
        normals = torch.zeros_like(bundle.origins).index_copy(0, index, nn.functional.normalize(gradient, dim=-1))
        # A headlight: enough to judge a shape by, whatever the side it is seen from.
        facing = -(normals * bundle.directions).sum(dim=-1).clamp(max=0.0)
        shade = (0.15 + 0.8 * facing) * accumulation
        return {
            "rgb": shade[:, None].expand(-1, 3),
            "normals": ((normals + 1.0) / 2.0).clamp(0.0, 1.0),
            "depth": depth[:, None],
            "accumulation": accumulation[:, None],
        }

    @torch.no_grad()
    def render_camera(self, camera: Cameras, obb_box: Union[OrientedBox, None] = None) -> Outputs:
        """Renders a camera, at its optimised pose if it is a training view's (metadata `cam_idx`).

        Besides the model's outputs: `normals_camera`, unit, in the camera's OpenCV axes, zero off the object.
        """
        return self._render_camera(camera, obb_box)[0]

    def _render_camera(self, camera: Cameras, obb_box: Union[OrientedBox, None]) -> Tuple[Outputs, RayBundle]:
        """With the rays, (H, W)."""
        posed = self.camera_optimizer.at_current_pose(camera).to(self.device)
        bundle = posed.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        outputs = self.get_outputs_for_camera_ray_bundle(bundle)
        axes = posed.camera_to_worlds[0, :, :3] * torch.tensor([1.0, -1.0, -1.0], device=self.device)
        seen = outputs["accumulation"] > 0.5
        outputs["normals_camera"] = torch.where(seen, (outputs["normals"] * 2 - 1) @ axes.to(outputs["normals"]), 0.0)
        return outputs, bundle

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Union[OrientedBox, None] = None) -> Outputs:
        """`render_camera`, as a page shows it.

        Besides: `angular_error`, a picture of how far normals are from those that the training view nearest to the
        camera has there.

        Raises:
            SystemExit: a GPU's memory runs out even with the fewest rays at once; with code 1, after one line on stderr.
        """
        with exit_on_error():  # nerfstudio's programs ask for this, which know no error of ours
            outputs, rays = self._render_camera(camera, obb_box)
        eye, seen = rays.origins[0, 0], outputs["accumulation"][..., 0] > 0.5
        error = self.supervision.nearest_view_error(
            rays.origins[seen] + outputs["depth"][seen] * rays.directions[seen],
            outputs["normals"][seen] * 2 - 1,
            eye,
            self.camera_optimizer,
            self.grid,
        )
        outputs["angular_error"] = error_picture(error, seen)
        if self.camera_optimizer.training_view(camera) is None:
            # A page draws the cameras into the picture by its depth, and those behind the object are behind nothing.
            beyond = eye.norm() + self.camera_optimizer.base_c2w[:, :, 3].norm(dim=-1).max()
            outputs["depth"] = torch.where(seen[..., None], outputs["depth"], beyond)
        return outputs

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> Outputs:
        """Renders given rays where they are: a whole image's bundle has its pose in it, whoever made it.

        Raises:
            PmniError: a GPU's memory runs out even with the fewest rays at once.
        """
        camera_ray_bundle.camera_indices = None
        render = super().get_outputs_for_camera_ray_bundle

        def outputs_by(rays: int) -> Outputs:
            self.config.eval_num_rays_per_chunk = rays
            return render(camera_ray_bundle)

        return self.ray_chunks.run(outputs_by)

    # ---- losses and metrics ----

    def get_loss_dict(self, outputs: Outputs, batch: Dict[str, Tensor], metrics_dict=None) -> Dict[str, Tensor]:
        """Every loss with a weight at this stage of the run, weighted, under its own name."""
        if not self.training:  # single rays in evaluation have no gradients: the mask's loss alone says how far it is
            accumulation, mask = outputs["accumulation"][:, 0], batch["mask"].to(self.device)[:, 0]
            return {"mask_loss": mask_loss(accumulation, mask, torch.ones_like(mask))}
        weights = self.config.loss_weights.weights_at(self.fraction)
        losses = self.supervision.losses(outputs, batch, weights, self.field, self.camera_optimizer, self.grid)
        loss_dict = {f"{name}_loss": weights[name] * loss for name, loss in losses.items()}
        self.camera_optimizer.get_loss_dict(loss_dict)
        return loss_dict

    def get_metrics_dict(self, outputs: Outputs, batch: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Sharpness of the surface and how far poses have moved."""
        metrics: Dict[str, Tensor] = {"inv_s": self.field.inv_s().detach()}
        self.camera_optimizer.get_metrics_dict(metrics)
        return metrics

    @torch.no_grad()
    def get_image_metrics_and_images(
        self, outputs: Outputs, batch: Dict[str, Tensor]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """See `image_metrics` and `image_pictures`."""
        observed, mask = batch["normal"].to(outputs["normals_camera"]), batch["mask"].to(outputs["depth"]) > 0.5
        error_deg, metrics = image_metrics(outputs, observed, mask)
        return metrics, image_pictures(outputs, observed, mask, error_deg)
