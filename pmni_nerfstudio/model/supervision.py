# SPDX-License-Identifier: Apache-2.0
"""What the rendered rays are compared with: gathers each loss's inputs, and computes those that have a weight."""

from __future__ import annotations

from typing import Dict, Literal

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

# Points a step for the losses between views: each is looked up in every view that sees it.
CROSS_VIEW_POINTS = 512
# Pairs of views farther apart than this share little surface.
NEIGHBOUR_ANGLE_DEG = 60.0
NEIGHBOURS = 4


class Supervision:
    """The training views' maps, and the losses on them.

    Args:
        views: the training views; their maps are read in place.
        normal_kind: how normals are compared.
    """

    def __init__(self, views: SplitViews, normal_kind: Literal["l1", "l2", "angular"]) -> None:
        self.has_depths = views.depth_files is not None
        self.normal_kind: Literal["l1", "l2", "angular"] = normal_kind
        self.pixels = views.height * views.width
        self._views = views
        self._K = torch.from_numpy(views.K).float()
        self._normals = torch.from_numpy(views.normals)
        self._depths: Tensor | None = None

    def depths(self, device: torch.device) -> Float[Tensor, "n h w"]:
        """Integrated depth maps of the training views, 0 where unknown, read at first use.

        Raises:
            SceneError: there are none.
        """
        if self._depths is None:
            self._depths = torch.from_numpy(read_depths(self._views)).to(device)
        return self._depths

    def _depth_at(self, indices: Int[Tensor, "r 3"], device: torch.device) -> Float[Tensor, "r"]:
        return self.depths(device)[tuple(indices.to(device).unbind(dim=-1))]

    def initial_depth_scales(
        self, poses: PmniPoseOptimizer, grid: SurfaceGrid, pixels: int = 500
    ) -> Float[Tensor, "n"]:
        """Factor of each depth map that puts it on the cached surface: the median over some of its pixels.

        A map is known up to its scale only; from cameras many radii away a few percent of it are a radius.
        """
        depths = self.depths(grid.volume.device)
        with torch.no_grad():
            w2c, K, c2w = poses.w2c_opencv(), self._K.to(depths.device), poses.c2w()
        scales = torch.ones(len(depths), device=depths.device)
        for view, depth in enumerate(depths):
            row, column = torch.nonzero(depth, as_tuple=True)
            every = max(1, len(row) // pixels)
            row, column = row[::every], column[::every]
            at = torch.full_like(row, view)
            image = torch.stack([column, row], dim=-1).float()
            ends = unproject(image, depth[row, column], w2c[at], K[at])
            rays = ends - c2w[at, :, 3]
            hits = grid.trace(c2w[at, :, 3], nn.functional.normalize(rays, dim=-1))
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
        """Unweighted losses by name, those of weight zero left out.

        Args:
            outputs: of rendered patches.
            batch: their observed `normal`, `mask` and `indices`.
            weights: by name.
            field: the SDF.
            poses: current poses of the training views.
            grid: the cached SDF.
        """
        mask, valid = batch["mask"][:, 0], outputs["valid"][:, 0].float()
        accumulation = outputs["accumulation"][:, 0]
        # A normal rendered from a ray that the surface hardly stops belongs to nothing.
        opaque = mask * valid * (accumulation.detach() > 0.5)
        view = batch["indices"][:, 0].to(mask.device)
        result: Dict[str, Tensor] = {}
        if weights["normal"]:
            to_camera = poses.w2c_opencv()[:, :, :3].index_select(0, view)
            rendered = (to_camera * outputs["normal_world"][:, None, :]).sum(dim=-1)
            result["normal"] = losses.normal_loss(rendered, batch["normal"], opaque, self.normal_kind)
        if weights["mask"]:
            result["mask"] = self._silhouette(outputs, mask, field, grid)
        if weights["eikonal"]:
            result["eikonal"] = losses.eikonal_loss(outputs["gradients"])
        if weights["depth"]:
            z = outputs["depth"][:, 0] / outputs["directions_norm"][:, 0]
            integrated = self._depth_at(batch["indices"], mask.device)
            known = (opaque > 0) & (integrated > 0)
            result["depth"] = losses.depth_loss(z, integrated, view, known, self._views.num_views)
        if weights["sdf_on_points"] or weights["point_consistency"]:
            result |= self._point_losses(batch, weights, field, poses)
        if weights["cross_view_normal"]:
            result["cross_view_normal"] = self._cross_view(outputs, field, poses, grid)
        if weights["curvature"]:
            points = outputs["surface"][outputs["hit"][:, 0]][:CROSS_VIEW_POINTS].detach()
            delta = field.active_voxel
            around = field.sdf(losses.axis_neighbours(points, delta))
            result["curvature"] = losses.curvature_loss(field.sdf(points), around, delta)
        return result

    @torch.no_grad()
    def nearest_view_error(
        self,
        points: Float[Tensor, "p 3"],
        normals: Float[Tensor, "p 3"],
        eye: Float[Tensor, "3"],
        poses: PmniPoseOptimizer,
        grid: SurfaceGrid,
    ) -> Float[Tensor, "p"]:
        """Angle between normals and those that the nearest view has there, in degrees; NaN where it sees nothing.

        Args:
            points: on the surface, world.
            normals: of the surface there, unit, world.
            eye: where from the points are looked at; the view nearest to it by direction from the origin is asked.
            poses: current poses of the training views.
            grid: the cached SDF, which says what hides what.
        """
        c2w, w2c, K = poses.c2w(), poses.w2c_opencv(), self._K.to(points)
        nearest = int((nn.functional.normalize(c2w[:, :, 3], dim=-1) @ nn.functional.normalize(eye, dim=-1)).argmax())
        count = len(points)
        pixels, depth = project_world(points, w2c[nearest].expand(count, 3, 4), K[nearest].expand(count, 3, 3))
        view = torch.full((count,), nearest, device=points.device)
        values, covered = sample_maps(self._normals, view, pixels)
        away = points - c2w[nearest, :, 3]
        distance = away.norm(dim=-1)
        hits = grid.trace(c2w[nearest, :, 3].expand(count, 3), away / distance[:, None])
        # By two cells and more in front of the point there is something else.
        seen = covered & (depth > 0) & ~(hits.hit & (hits.t < distance - 2 * grid.cell))
        observed = values @ w2c[nearest, :, :3]
        return torch.where(seen, torch.rad2deg(losses.angles(observed, normals)), torch.nan)

    @staticmethod
    def _silhouette(
        outputs: Dict[str, Tensor], mask: Float[Tensor, "r"], field: PmniField, grid: SurfaceGrid
    ) -> Float[Tensor, ""]:
        """The masks' loss where rays pass the surface nearest. Rays off the mask that come nowhere near it have none."""
        near = outputs["near"][:, 0]
        counted = torch.nonzero(near | (mask > 0.5))[:, 0]
        if not len(counted):
            return mask.new_zeros(())
        origins, directions = outputs["origins"][counted], outputs["directions"][counted]
        t = torch.where(
            near[counted],
            outputs["lowest"][counted, 0],
            grid.nearest_pass(origins.detach(), directions.detach(), ~near[counted]),
        )
        least = field.sdf(origins + t[:, None] * directions)
        return losses.silhouette_loss(least, mask[counted], field.inv_s()).sum() / len(mask)

    def _point_losses(
        self, batch: Dict[str, Tensor], weights: Dict[str, float], field: PmniField, poses: PmniPoseOptimizer
    ) -> Dict[str, Tensor]:
        """Losses on the points of the depth maps at the batch's pixels."""
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
            table = losses.neighbour_views(w2c, NEIGHBOUR_ANGLE_DEG, NEIGHBOURS)
            chosen = torch.randint(table.shape[1], (len(view),), device=device)
            result["point_consistency"] = losses.point_consistency_loss(
                indices, table[view, chosen], depths, scales, w2c, K
            )
        return result

    def _cross_view(
        self, outputs: Dict[str, Tensor], field: PmniField, poses: PmniPoseOptimizer, grid: SurfaceGrid
    ) -> Float[Tensor, ""]:
        """Observed normals of surface points in all views that see them."""
        points = outputs["surface"][outputs["hit"][:, 0]].detach()
        points = points[:: max(1, len(points) // CROSS_VIEW_POINTS)]
        normals = nn.functional.normalize(field.numerical_gradient(points, field.active_voxel).detach(), dim=-1)
        centres = poses.c2w()[:, :, 3].detach()
        cosines = view_cosines(points, normals, centres)
        seen = visible_by_sphere_tracing(grid.lookup, points, centres, candidates=cosines > 0.2)
        return losses.cross_view_normal_loss(
            points, poses.w2c_opencv(), self._K.to(points.device), self._normals, cosines.clamp(min=0.0) * seen
        )
