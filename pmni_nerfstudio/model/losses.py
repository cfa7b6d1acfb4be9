# SPDX-License-Identifier: Apache-2.0
"""Loss functions: pure functions of tensors that each return one scalar, weighted by `loss_schedule`.

Normal, mask, depth, eikonal and consistency losses are the terms of PMNI (Pei et al., CVPR 2025).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from typing_extensions import assert_never

from pmni_nerfstudio.geometry.interpolation import sample_maps
from pmni_nerfstudio.geometry.projection import project_world, unproject

NormalLossKind = Literal["l1", "l2", "angular"]


def weighted_mean(values: Float[Tensor, "n"], weights: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """Weighted mean; zero, with zero gradient, if all weights are zero (no ray meets the object)."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))


def angles(a: Float[Tensor, "*n 3"], b: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
    """Angles between vectors of any length, in radians.

    Computed with atan2, whose gradient is finite at parallel vectors, unlike that of the arc cosine.
    """
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1))


def normal_loss(
    rendered: Float[Tensor, "n 3"],
    observed: Float[Tensor, "n 3"],
    weights: Float[Tensor, "n"],
    kind: NormalLossKind = "l2",
) -> Float[Tensor, ""]:
    """Weighted mean difference between rendered and observed normals (Cao and Taketomi, "SuperNormal", CVPR 2024).

    It drives both surface and poses: the rendered normals are rotated into the camera by the current pose.

    Args:
        rendered: Normals in the same frame as `observed`, of approximately unit length.
        observed: Unit normals.
        weights: Weight of each ray; zero where no normal is observed.
        kind: l1, sum of absolute differences; l2, squared Euclidean distance; angular, angle in radians, which ignores
            the length of the rendered normal.
    """
    if kind == "l1":
        error = (rendered - observed).abs().sum(dim=-1)
    elif kind == "l2":
        error = (rendered - observed).square().sum(dim=-1)
    elif kind == "angular":
        error = angles(rendered, observed)
    else:
        assert_never(kind)
    return weighted_mean(error, weights)


def mask_loss(
    accumulation: Float[Tensor, "n"], mask: Float[Tensor, "n"], weights: Float[Tensor, "n"], margin: float = 1e-3
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the accumulated weight against the mask (Wang et al., "NeuS", NeurIPS 2021).

    Evaluation uses it on rendered rays; training uses `silhouette_loss`.

    Args:
        accumulation: Accumulated weight of each ray, in [0, 1].
        mask: 1 on the object, 0 elsewhere.
        weights: Weight of each ray.
        margin: The accumulation is mapped linearly to [margin, 1 - margin]. NeuS clamps instead, which leaves rays that
            miss the object without a gradient; the linear map keeps one, bounded by 1 / margin.
    """
    squeezed = margin + (1 - 2 * margin) * accumulation
    # PyTorch's binary_cross_entropy raises an error under automatic mixed precision.
    return weighted_mean(-(mask * squeezed.log() + (1 - mask) * (-squeezed).log1p()), weights)


def silhouette_loss(
    min_sdf: Float[Tensor, "n"], mask: Float[Tensor, "n"], inv_s: Float[Tensor, ""]
) -> Float[Tensor, "n"]:
    """Per-ray cross-entropy of opacity against the mask, from the minimum SDF along the ray (Yariv et al., "IDR", 2020).

    It ties the silhouette of the surface to the masks, which normals alone do not. The opacity of a soft surface along a
    whole ray is the logistic function of that minimum. Opacity accumulated from samples is too small on rays that graze
    the surface, because few samples lie deep enough, and the surface then inflates (a sphere at 153x128 pixels by 0.2%
    of its radius).

    Args:
        min_sdf: Minimum SDF along each ray, in world units.
        mask: 1 on the object, 0 elsewhere.
        inv_s: Sharpness of the logistic density.
    """
    return functional.softplus(inv_s * min_sdf * (2 * mask - 1))


def eikonal_loss(gradients: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """Mean squared deviation of the SDF's gradient norm from 1 (Gropp et al., "IGR", ICML 2020).

    It keeps the field a signed distance, so that sharpness and step sizes mean the same everywhere.
    """
    return (gradients.norm(dim=-1) - 1).square().mean()


def depth_loss(
    rendered: Float[Tensor, "n"],
    integrated: Float[Tensor, "n"],
    views: Int[Tensor, "n"],
    valid: Bool[Tensor, "n"],
    num_views: int,
) -> Float[Tensor, ""]:
    """Mean absolute difference between rendered depths and integrated depth maps, up to one scale per view.

    It constrains the large-scale shape of the surface, where the normal loss sees only its slope. The scale is the
    least-squares fit over the view's rays in the batch, alpha = (z_r . z_i) / (z_i . z_i) (Pei et al., "PMNI",
    CVPR 2025, which prints the inverse fraction). The gradient passes through alpha, so that no view's gradient
    has a component along its own depth map, sum(z_i dL/dz_r) = 0: the loss shapes the surface without moving it. With a
    constant alpha, skewed residuals (outliers lie mostly behind the surface) push the whole view along its axis.

    Args:
        rendered: Depth along the optical axis.
        integrated: Depth along the optical axis, up to one positive factor per view.
        views: View of each ray, less than `num_views`.
        valid: Rays with both depths; the other entries may hold anything, NaN included.
        num_views: Number of training views.
    """
    weights = valid.to(rendered.dtype)
    rendered = torch.where(valid, rendered, torch.zeros_like(rendered))
    integrated = torch.where(valid, integrated, torch.zeros_like(integrated))
    sums = rendered.new_zeros(2, num_views).index_add(
        1, views, torch.stack([rendered * integrated, integrated.square()])
    )
    alpha = sums[0] / torch.where(sums[1] > 0, sums[1], torch.ones_like(sums[1]))
    return weighted_mean((rendered - alpha.index_select(0, views) * integrated).abs(), weights)


def sdf_on_points_loss(sdf: Float[Tensor, "p"], weights: Float[Tensor, "p"]) -> Float[Tensor, ""]:
    """Mean absolute SDF at points that should lie on the surface (Fu et al., "Geo-Neus", NeurIPS 2022).

    The points come from the scaled depth maps: the loss fixes the scale that `point_consistency_loss` leaves free.
    """
    return weighted_mean(sdf.abs(), weights)


def neighbor_views(w2c: Float[Tensor, "v 3 4"], max_angle_deg: float, count: int) -> Int[Tensor, "v k"]:
    """Indices of the views with the most similar viewing directions, most similar first.

    Args:
        w2c: World-to-camera poses, OpenCV axes.
        max_angle_deg: Maximum angle between the optical axes of neighbors, in degrees.
        count: Maximum number of neighbors per view.

    Returns:
        Indices (v, count), padded with -1.
    """
    axes = w2c[:, 2, :3].detach().double()
    cosine = (axes @ axes.T).clamp(-1, 1).fill_diagonal_(-2)
    best, index = cosine.topk(min(count, len(w2c)), dim=1)
    limit = torch.deg2rad(torch.tensor(max_angle_deg, dtype=torch.float64, device=w2c.device)).cos()
    index = torch.where(best >= limit, index, -1)
    return functional.pad(index, (0, count - index.shape[1]), value=-1)


def point_consistency_loss(
    indices: Int[Tensor, "p 3"],
    neighbors: Int[Tensor, "p"],
    depth_maps: Float[Tensor, "v h w"],
    scales: Float[Tensor, "v"],
    w2c: Float[Tensor, "v 3 4"],
    K: Float[Tensor, "v 3 3"],
    max_behind: float = 0.1,
) -> Float[Tensor, ""]:
    """Mean depth difference between the points of one view's depth map and a neighboring view's map (after PMNI).

    It aligns the poses, and the scales of the depth maps, without rendering. Each point is projected into its neighbor
    and its depth compared with the neighbor's map there. Absolute differences bound the gradient at depth
    discontinuities. A scale common to all views remains free; `sdf_on_points_loss` fixes it.

    Args:
        indices: View, row and column of each point's pixel.
        neighbors: View to compare each point with; -1 for none.
        depth_maps: Integrated depth along the optical axis, 0 where unknown.
        scales: Learned factor of each depth map.
        w2c: World-to-camera poses, OpenCV axes.
        K: Intrinsics in pixels.
        max_behind: Points farther than this behind the neighbor's surface, in world units, count as occluded.
    """
    view, row, column = indices.unbind(dim=-1)
    target = neighbors.clamp(min=0)
    depth_here = depth_maps[view, row, column]
    pixels = torch.stack([column, row], dim=-1).to(depth_here)
    points = unproject(pixels, depth_here * scales[view], w2c.index_select(0, view), K[view])
    projected, depth = project_world(points, w2c.index_select(0, target), K[target])
    expected, covered = sample_maps(depth_maps[..., None], target, projected)
    behind = depth - expected.squeeze(-1) * scales[target]
    visible = (neighbors >= 0) & (depth_here > 0) & (depth > 0) & covered & (behind < max_behind)
    return weighted_mean(behind.abs(), visible.to(behind.dtype))


def cross_view_normal_loss(
    points: Float[Tensor, "p 3"],
    w2c: Float[Tensor, "v 3 4"],
    K: Float[Tensor, "v 3 3"],
    normal_maps: Shaped[Tensor, "v h w 3"],
    weights: Float[Tensor, "p v"],
    radius: float = 0.15,
) -> Float[Tensor, ""]:
    """Disagreement, in world axes, between the normals that different views observe at the same surface points.

    It is the cost of normal bundle adjustment. The unknown true normal of each point is eliminated: with mu the
    weighted mean of the observations m_i, the loss is the weighted mean of rho(|m_i - mu|^2), rho Huber's function. The
    gradient reaches the poses through the rotation of the observations and through the pixel where they are read, and
    the points if they require one.

    Args:
        points: Surface points, world coordinates.
        w2c: World-to-camera poses, OpenCV axes.
        K: Intrinsics in pixels.
        normal_maps: Camera-space normals, OpenCV axes, zero off the mask; half precision is not copied.
        weights: Weight of each point in each view, 0 where invisible; typically the cosine of the viewing angle.
        radius: Residual beyond which Huber's function grows linearly.
    """
    weights = weights.detach()  # else poses would be drawn to where disagreement has a small weight
    point, view = weights.nonzero(as_tuple=True)
    w2c_of_pair = w2c.index_select(0, view)
    pixels, depth = project_world(points.index_select(0, point), w2c_of_pair, K[view])
    observed, covered = sample_maps(normal_maps, view, pixels)
    observed = torch.where(covered[:, None], observed, torch.ones_like(observed))
    world = (w2c_of_pair[..., :3] * functional.normalize(observed, dim=-1)[..., None]).sum(dim=-2)

    used = covered & (depth > 0)
    count = weights.new_zeros(len(points)).index_add(0, point, used.to(weights.dtype))
    # A point that a single view observes always agrees with itself.
    weight = weights[point, view] * (used & (count[point] > 1))
    total = weights.new_zeros(len(points)).index_add(0, point, weight)
    total = torch.where(total > 0, total, torch.ones_like(total))
    mean = world.new_zeros(len(points), 3).index_add(0, point, weight[:, None] * world) / total[:, None]
    residual = (world - mean.index_select(0, point)).norm(dim=-1)
    # Twice PyTorch's function: r^2 up to the radius, 2 radius r - radius^2 beyond.
    robust = 2 * functional.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=radius)
    return weighted_mean(robust, weight)
