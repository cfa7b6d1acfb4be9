# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions of tensors: one number each, to be weighted by `loss_schedule`."""

from __future__ import annotations

from typing import Literal, Optional

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from typing_extensions import assert_never

from pmni_nerfstudio.geometry.interpolation import sample_maps
from pmni_nerfstudio.geometry.projection import project_world, unproject

NormalKind = Literal["l1", "l2", "angular"]


def weighted_mean(values: Float[Tensor, "n"], weights: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """Mean by weights; zero, with zero gradient, where all weights are zero (no ray met the object)."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))


def angles(a: Float[Tensor, "*n 3"], b: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
    """Between vectors of any length, in radians. By atan2, whose gradient, unlike the arc cosine's, is finite at equal
    vectors."""
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1))


def normal_loss(
    rendered: Float[Tensor, "n 3"],
    observed: Float[Tensor, "n 3"],
    weights: Float[Tensor, "n"],
    kind: NormalKind = "l2",
) -> Float[Tensor, ""]:
    """How far rendered normals are from the observed ones (Cao and Taketomi, "SuperNormal", CVPR 2024).

    Args:
        rendered: in the same frame as observed; length 1 up to what rendering makes of it.
        observed: unit.
        weights: per ray; zero where nothing is observed.
        kind: l1, sum of absolute differences; l2, squared distance; angular, the angle in radians, which doesn't see
            the rendered normal's length.
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

    Args:
        accumulation: in [0, 1].
        mask: 1 on the object, 0 off it.
        weights: per ray.
        margin: the accumulation is squeezed into [margin, 1 - margin]. NeuS clamps there, and a ray that misses the
            object altogether then has no gradient; squeezed, it keeps one, bounded by 1 / margin.
    """
    squeezed = margin + (1 - 2 * margin) * accumulation
    # Written out: the stock function refuses to run under automatic mixed precision.
    return weighted_mean(-(mask * squeezed.log() + (1 - mask) * (-squeezed).log1p()), weights)


def silhouette_loss(
    least: Float[Tensor, "n"], mask: Float[Tensor, "n"], inv_s: Float[Tensor, ""]
) -> Float[Tensor, "n"]:
    """Cross-entropy of each ray's opacity against the mask, by the least SDF along it (Yariv et al., "IDR", 2020).

    A soft surface's opacity on a whole ray is the logistic distribution at that SDF. Rendered from samples it comes out
    smaller on rays that graze the surface, since few of their samples are deep enough; the surface then swells (a ball
    at 153x128 by .2% of its radius).

    Args:
        least: SDF where it is least on the ray, world units.
        mask: 1 on the object, 0 off it.
        inv_s: sharpness.
    """
    return functional.softplus(inv_s * least * (2 * mask - 1))


def eikonal_loss(gradients: Float[Tensor, "n 3"], weights: Optional[Float[Tensor, "n"]] = None) -> Float[Tensor, ""]:
    """Mean squared departure of the SDF's slope from 1 (Gropp et al., "IGR", ICML 2020)."""
    error = (gradients.norm(dim=-1) - 1).square()
    return error.mean() if weights is None else weighted_mean(error, weights)


def depth_loss(
    rendered: Float[Tensor, "n"],
    integrated: Float[Tensor, "n"],
    views: Int[Tensor, "n"],
    valid: Bool[Tensor, "n"],
    num_views: int,
) -> Float[Tensor, ""]:
    """Mean absolute difference between rendered depths and integrated ones, each view's up to a scale.

    The scale is the least-squares one over the view's rays in this batch, alpha = (z_r . z_i) / (z_i . z_i) (Peng et
    al., "PMNI", CVPR 2025, whose paper has the fraction upside down). The gradient goes through alpha: then no view's
    gradient has a part along its own depth map, sum(z_i dL/dz_r) = 0, and the loss shapes the surface without moving
    it. With alpha held fixed, a skewed set of residuals (what lies off the true surface lies mostly behind it) pushes
    the whole view along its axis.

    Args:
        rendered: along the optical axis.
        integrated: along the optical axis, up to one positive factor a view.
        views: that each ray belongs to, below num_views.
        valid: rays with both depths.
        num_views: in the run.
    """
    weights = valid.to(rendered.dtype)
    # Where there is no depth, anything may stand, NaN too.
    rendered = torch.where(valid, rendered, torch.zeros_like(rendered))
    integrated = torch.where(valid, integrated, torch.zeros_like(integrated))
    sums = rendered.new_zeros(2, num_views).index_add(
        1, views, torch.stack([rendered * integrated, integrated.square()])
    )
    alpha = sums[0] / torch.where(sums[1] > 0, sums[1], torch.ones_like(sums[1]))
    return weighted_mean((rendered - alpha.index_select(0, views) * integrated).abs(), weights)


def sdf_on_points_loss(sdf: Float[Tensor, "p"], weights: Float[Tensor, "p"]) -> Float[Tensor, ""]:
    """Mean absolute SDF at points that should lie on the surface (Fu et al., "Geo-Neus", NeurIPS 2022)."""
    return weighted_mean(sdf.abs(), weights)


def neighbour_views(w2c: Float[Tensor, "v 3 4"], max_angle_deg: float, count: int) -> Int[Tensor, "v k"]:
    """The views that look the most nearly the same way, nearest first.

    Args:
        w2c: world-to-camera, OpenCV axes.
        max_angle_deg: largest angle between the optical axes of neighbours.
        count: neighbours per view, at most.

    Returns:
        Indices (v, count), -1 where a view has fewer.
    """
    axes = w2c[:, 2, :3].detach().double()
    cosine = (axes @ axes.T).clamp(-1, 1).fill_diagonal_(-2)
    best, index = cosine.topk(min(count, len(w2c)), dim=1)
    limit = torch.deg2rad(torch.tensor(max_angle_deg, dtype=torch.float64, device=w2c.device)).cos()
    index = torch.where(best >= limit, index, -1)
    return functional.pad(index, (0, count - index.shape[1]), value=-1)


def point_consistency_loss(
    indices: Int[Tensor, "p 3"],
    neighbours: Int[Tensor, "p"],
    depth_maps: Float[Tensor, "v h w"],
    scales: Float[Tensor, "v"],
    w2c: Float[Tensor, "v 3 4"],
    K: Float[Tensor, "v 3 3"],
    max_behind: float = 0.1,
) -> Float[Tensor, ""]:
    """Whether the points of one view's scaled depth map lie on a neighbouring view's (after Peng et al., "PMNI").

    Each point is projected into its neighbour and its depth there compared with the neighbour's own depth map.
    Absolute differences: bounded gradients, whatever a depth map does at its jumps. The loss alone can't fix a scale
    common to all views; the loss on rendered depth or `sdf_on_points_loss` does.

    Args:
        indices: view, row, column of the points' pixels.
        neighbours: view to compare with, -1: none.
        depth_maps: integrated depth along the optical axis, 0 where unknown.
        scales: learnt factor of each depth map.
        w2c: world-to-camera, OpenCV axes.
        K: intrinsics in pixels.
        max_behind: a point farther than this (in world units) behind the neighbour's surface is hidden there.
    """
    view, row, column = indices.unbind(dim=-1)
    target = neighbours.clamp(min=0)
    known = depth_maps[view, row, column]
    pixels = torch.stack([column, row], dim=-1).to(known)
    points = unproject(pixels, known * scales[view], w2c.index_select(0, view), K[view])
    there, depth = project_world(points, w2c.index_select(0, target), K[target])
    expected, covered = sample_maps(depth_maps[..., None], target, there)
    behind = depth - expected.squeeze(-1) * scales[target]
    seen = (neighbours >= 0) & (known > 0) & (depth > 0) & covered & (behind < max_behind)
    return weighted_mean(behind.abs(), seen.to(behind.dtype))


def cross_view_normal_loss(
    points: Float[Tensor, "p 3"],
    w2c: Float[Tensor, "v 3 4"],
    K: Float[Tensor, "v 3 3"],
    normal_maps: Shaped[Tensor, "v h w 3"],
    weights: Float[Tensor, "p v"],
    radius: float = 0.15,
) -> Float[Tensor, ""]:
    """Whether the views that see a surface point observe the same normal there, in world axes.

    The unknown true normal is eliminated point by point: mu = weighted mean of the observations m_i, and the cost is
    the weighted mean of rho(|m_i - mu|^2). The gradient reaches poses through the rotation of the observations and
    through the place where they are looked up, and the points if they carry one.

    Args:
        points: on the surface, world.
        w2c: world-to-camera, OpenCV axes.
        K: intrinsics in pixels.
        normal_maps: camera space, OpenCV axes, zero off the mask; half precision is read in place.
        weights: of each point in each view, 0 where it isn't visible; commonly the cosine to the view.
        radius: Huber's: residuals beyond it count by their length and no longer by its square.
    """
    weights = weights.detach()  # or poses would be drawn to where disagreement weighs little
    point, view = weights.nonzero(as_tuple=True)
    w2c_of_pair = w2c.index_select(0, view)
    pixels, depth = project_world(points.index_select(0, point), w2c_of_pair, K[view])
    observed, covered = sample_maps(normal_maps, view, pixels)
    observed = torch.where(covered[:, None], observed, torch.ones_like(observed))
    world = (w2c_of_pair[..., :3] * functional.normalize(observed, dim=-1)[..., None]).sum(dim=-2)

    used = covered & (depth > 0)
    count = weights.new_zeros(len(points)).index_add(0, point, used.to(weights.dtype))
    # A point that one view sees agrees with itself: it has nothing to say.
    weight = weights[point, view] * (used & (count[point] > 1))
    total = weights.new_zeros(len(points)).index_add(0, point, weight)
    total = torch.where(total > 0, total, torch.ones_like(total))
    mean = world.new_zeros(len(points), 3).index_add(0, point, weight[:, None] * world) / total[:, None]
    return weighted_mean(huber((world - mean.index_select(0, point)).square().sum(dim=-1), radius), weight)


def huber(squared: Float[Tensor, "*b"], radius: float) -> Float[Tensor, "*b"]:
    """Huber's function of squared residuals: r^2 up to the radius, 2 radius r - radius^2 beyond (Huber, 1964)."""
    limit = radius * radius
    return torch.where(squared <= limit, squared, 2 * radius * squared.clamp(min=limit).sqrt() - limit)


def axis_neighbours(points: Float[Tensor, "n 3"], delta: float) -> Float[Tensor, "n 6 3"]:
    """Points at distance delta along +x, -x, +y, -y, +z, -z: for six-point gradients and `curvature_loss` alike."""
    eye = torch.eye(3, dtype=points.dtype, device=points.device)
    return points[:, None] + delta * torch.stack([eye, -eye], dim=1).view(6, 3)


def curvature_loss(
    centre: Float[Tensor, "n"],
    around: Float[Tensor, "n 6"],
    delta: float,
    weights: Optional[Float[Tensor, "n"]] = None,
) -> Float[Tensor, ""]:
    """Mean absolute Laplacian of the SDF, twice the mean curvature (Li et al., "Neuralangelo", CVPR 2023).

    By six-point second differences: they need values only (the points of the six-point gradient serve again, and no
    second derivative is propagated back), and they mean something for every encoding. The analytic gradient of a
    trilinear grid jumps at cell faces and has no curvature within: its differences over a random tangent would
    measure where the cells lie.

    Args:
        centre: SDF at the points.
        around: SDF at `axis_neighbours(points, delta)`; delta a voxel or more.
        delta: in world units.
        weights: per point, None: all alike.
    """
    laplacian = (around.sum(dim=-1) - 6 * centre) / (delta * delta)
    return laplacian.abs().mean() if weights is None else weighted_mean(laplacian.abs(), weights)
