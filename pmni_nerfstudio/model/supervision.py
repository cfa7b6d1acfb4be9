# SPDX-License-Identifier: Apache-2.0
"""Supervision by the maps of the training views: gathers the inputs of the losses and computes those with a weight."""

from __future__ import annotations

from typing import Dict, Optional

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pmni_nerfstudio.data.depths import read_depths
from pmni_nerfstudio.data.split_views import SplitViews
from pmni_nerfstudio.fields.sdf_field import PmniField
from pmni_nerfstudio.geometry.interpolation import sample_maps
from pmni_nerfstudio.geometry.projection import project_world, unproject
from pmni_nerfstudio.model import losses
from pmni_nerfstudio.model.marching import SurfaceGrid
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizer
from pmni_nerfstudio.model.visibility import view_cosines, visible_by_sphere_tracing

CROSS_VIEW_POINTS = 512
"""Maximum number of points per step of the losses between views, each of which is read in all views that see it."""
MAX_NEIGHBOR_ANGLE_DEG = 60.0
"""Maximum angle between neighboring views in degrees; views farther apart share little surface."""
DEPTH_SCALE_PIXELS = 500
"""Approximate number of pixels from which the scale of a depth map is initialized."""
NUM_NEIGHBORS = 4
"""Maximum number of neighbors per view."""


class Supervision:
    """Maps of the training views, and the losses against them.

    Args:
        views: Training views; their maps are not copied.
        normal_kind: Kind of the normal loss.
    """

    def __init__(self, views: SplitViews, normal_kind: losses.NormalLossKind) -> None:
        self.normal_kind: losses.NormalLossKind = normal_kind
        self._views = views
        self._K = torch.from_numpy(views.K).float()
        self._normals = torch.from_numpy(views.normals)
        self._depths: Tensor | None = None

    def depths(self, device: torch.device) -> Float[Tensor, "n h w"]:
        """Integrated depth maps of the training views, 0 where unknown, read at first use.

        Raises:
            SceneError: There are no depth maps.
        """
        if self._depths is None:
            self._depths = torch.from_numpy(read_depths(self._views)).to(device)
        return self._depths

    def _depth_at(self, indices: Int[Tensor, "r 3"], device: torch.device) -> Float[Tensor, "r"]:
        return self.depths(device)[tuple(indices.to(device).unbind(dim=-1))]

    def initial_depth_scales(self, poses: PmniPoseOptimizer, grid: SurfaceGrid) -> Float[Tensor, "n"]:
        """Factor of each depth map that scales it onto the cached surface: the median over some of its pixels.

        Integration leaves the scale undetermined, and for cameras many radii away a few percent of the depth are a
        radius.
        """
        depths = self.depths(grid.volume.device)
        with torch.no_grad():
            w2c, K, c2w = poses.w2c_opencv(), self._K.to(depths.device), poses.c2w()
        scales = torch.ones(len(depths), device=depths.device)
        for view, depth in enumerate(depths):
            row, column = torch.nonzero(depth, as_tuple=True)
            stride = max(1, len(row) // DEPTH_SCALE_PIXELS)
            row, column = row[::stride], column[::stride]
            index = torch.full_like(row, view)
            image = torch.stack([column, row], dim=-1).float()
            ends = unproject(image, depth[row, column], w2c[index], K[index])
            rays = ends - c2w[index, :, 3]
            hits = grid.trace(c2w[index, :, 3], nn.functional.normalize(rays, dim=-1))
            if bool(hits.hit.any()):
                scales[view] = (hits.t / rays.norm(dim=-1))[hits.hit].median()
        return scales

    def losses(
        self,
        outputs: Dict[str, Tensor],
        batch: Dict[str, Tensor],
        weights: Dict[str, float],
        field: PmniField,
        poses: PmniPoseOptimizer,
        grid: SurfaceGrid,
    ) -> Dict[str, Tensor]:
        """Unweighted losses by name, without those of weight zero.

        Args:
            outputs: Outputs of `render_patches`.
            batch: Observations of the same rays: `normal`, `mask`, `indices` (view, row, column), and `unknown` if there
                are rays along which something else stands in front.
            weights: Weights by name.
            field: Signed distance field.
            poses: Current poses of the training views.
            grid: Occupancy grid that caches the field.
        """
        mask, valid = batch["mask"][:, 0], outputs["valid"][:, 0].float()
        accumulation = outputs["accumulation"][:, 0]
        # A ray that is hardly opaque has no meaningful normal.
        opaque = mask * valid * (accumulation.detach() > 0.5)
        measured = opaque * batch["normal"].ne(0).any(dim=-1)  # not in holes, whose normals are zero
        view = batch["indices"][:, 0].to(mask.device)
        result: Dict[str, Tensor] = {}
        if weights["normal"]:
            to_camera = poses.w2c_opencv()[:, :, :3].index_select(0, view)
            rendered = (to_camera * outputs["normal_world"][:, None, :]).sum(dim=-1)
            result["normal"] = losses.normal_loss(rendered, batch["normal"], measured, self.normal_kind)
        if weights["mask"]:
            result["mask"] = self._mask_loss(outputs, mask, batch.get("unknown"), field, grid)
        if weights["eikonal"]:
            result["eikonal"] = losses.eikonal_loss(outputs["gradients"])
        if weights["depth"]:
            z = outputs["depth"][:, 0] / outputs["directions_norm"][:, 0]
            integrated = self._depth_at(batch["indices"], mask.device)
            known = (measured > 0) & (integrated > 0)
            result["depth"] = losses.depth_loss(z, integrated, view, known, self._views.num_views)
        if weights["sdf_on_points"] or weights["point_consistency"]:
            result |= self._point_losses(batch, weights, field, poses)
        if weights["cross_view_normal"]:
            result["cross_view_normal"] = self._cross_view(outputs, field, poses, grid)
        return result

    @torch.no_grad()
    def nearest_view_error_deg(
        self,
        points: Float[Tensor, "p 3"],
        normals: Float[Tensor, "p 3"],
        camera_center: Float[Tensor, "3"],
        poses: PmniPoseOptimizer,
        grid: SurfaceGrid,
    ) -> Float[Tensor, "p"]:
        """Angles between surface normals and those observed in the nearest view, in degrees; NaN where occluded.

        Args:
            points: Surface points, world coordinates.
            normals: Unit normals at the points, world axes.
            camera_center: Center of the rendered camera; the nearest view is the one with the most similar direction
                from the origin.
            poses: Current poses of the training views.
            grid: Occupancy grid that caches the field, for occlusion.
        """
        c2w, w2c, K = poses.c2w(), poses.w2c_opencv(), self._K.to(points)
        nearest = int(
            (nn.functional.normalize(c2w[:, :, 3], dim=-1) @ nn.functional.normalize(camera_center, dim=-1)).argmax()
        )
        count = len(points)
        pixels, depth = project_world(points, w2c[nearest].expand(count, 3, 4), K[nearest].expand(count, 3, 3))
        view = torch.full((count,), nearest, device=points.device)
        values, covered = sample_maps(self._normals, view, pixels)
        rays = points - c2w[nearest, :, 3]
        distance = rays.norm(dim=-1)
        hits = grid.trace(c2w[nearest, :, 3].expand(count, 3), rays / distance[:, None])
        occluded = hits.hit & (hits.t < distance - 2 * grid.cell)  # two cells of tolerance
        visible = covered & (depth > 0) & ~occluded
        observed = values @ w2c[nearest, :, :3]
        return torch.where(visible, torch.rad2deg(losses.angles(observed, normals)), torch.nan)

    @staticmethod
    def _mask_loss(
        outputs: Dict[str, Tensor],
        mask: Float[Tensor, "r"],
        unknown: Optional[Float[Tensor, "r 1"]],
        field: PmniField,
        grid: SurfaceGrid,
    ) -> Float[Tensor, ""]:
        """Silhouette loss at the minimum SDF of each ray.

        Rays off the mask that pass far from the surface are left out, and unknown ones.
        """
        near = outputs["near"][:, 0]
        counts = near | (mask > 0.5)
        if unknown is not None:
            counts &= unknown[:, 0] < 0.5
        counted = torch.nonzero(counts)[:, 0]
        if not len(counted):
            return mask.new_zeros(())
        origins, directions = outputs["origins"][counted], outputs["directions"][counted]
        t = torch.where(
            near[counted],
            outputs["t_min_sdf"][counted, 0],
            grid.closest_approach(origins.detach(), directions.detach(), ~near[counted]),
        )
        min_sdf = field.sdf(origins + t[:, None] * directions)
        return losses.silhouette_loss(min_sdf, mask[counted], field.inv_s()).sum() / len(mask)

    def _point_losses(
        self, batch: Dict[str, Tensor], weights: Dict[str, float], field: PmniField, poses: PmniPoseOptimizer
    ) -> Dict[str, Tensor]:
        """Losses on the points of the depth maps at the pixels of the batch."""
        device = batch["mask"].device
        depths = self.depths(device)
        indices = batch["indices"].to(device)
        known = self._depth_at(indices, device) > 0
        indices = indices[known][:: max(1, int(known.sum()) // CROSS_VIEW_POINTS)]
        view, row, column = indices.unbind(dim=-1)
        w2c, K, scales = poses.w2c_opencv(), self._K.to(device), poses.depth_scales()
        result: Dict[str, Tensor] = {}
        if weights["sdf_on_points"]:
            pixels = torch.stack([column, row], dim=-1).float()
            depth = depths[view, row, column] * scales[view]
            points = unproject(pixels, depth, w2c.index_select(0, view), K[view])
            inside = (points.norm(dim=-1) < 1).float()
            result["sdf_on_points"] = losses.sdf_on_points_loss(field.sdf(points), inside)
        if weights["point_consistency"]:
            table = losses.neighbor_views(w2c, MAX_NEIGHBOR_ANGLE_DEG, NUM_NEIGHBORS)
            chosen = torch.randint(table.shape[1], (len(view),), device=device)
            result["point_consistency"] = losses.point_consistency_loss(
                indices, table[view, chosen], depths, scales, w2c, K
            )
        return result

    def _cross_view(
        self, outputs: Dict[str, Tensor], field: PmniField, poses: PmniPoseOptimizer, grid: SurfaceGrid
    ) -> Float[Tensor, ""]:
        """Cross-view normal loss at surface points, in all views that see them."""
        points = outputs["surface"][outputs["hit"][:, 0]].detach()
        points = points[:: max(1, len(points) // CROSS_VIEW_POINTS)]
        normals = nn.functional.normalize(field.numerical_gradient(points, field.active_voxel).detach(), dim=-1)
        centers = poses.c2w()[:, :, 3].detach()
        cosines = view_cosines(points, normals, centers)
        visible = visible_by_sphere_tracing(grid.lookup, points, centers, candidates=cosines > 0.2)
        return losses.cross_view_normal_loss(
            points, poses.w2c_opencv(), self._K.to(points.device), self._normals, cosines.clamp(min=0.0) * visible
        )
