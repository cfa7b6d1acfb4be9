# SPDX-License-Identifier: Apache-2.0
"""Rigid motions from twists: one exponential map with two providers, and the freedoms that poses alone can't fix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from nerfstudio.cameras.lie_groups import exp_map_SE3
from torch import Tensor

Exponential = Callable[[Float[Tensor, "n 6"]], Float[Tensor, "n 3 4"]]

SMALL_ANGLE = 1e-7
"""Radians below which the first-order motion stands in for pypose's."""


def se3_exp_pypose(twist: Float[Tensor, "n 6"]) -> Float[Tensor, "n 3 4"]:
    """Rigid motions exp(twist) through pypose's LieTensor (Wang et al., "PyPose", CVPR 2023).

    pypose divides cancelled differences by the angle's fourth power: between 1e-16 and 1e-8 rad its gradient is off
    by up to four times the translation, even in double precision. There the first-order motion, right to 1e-14,
    takes its place.

    Args:
        twist: translation first, then the rotation vector in radians; double precision for full accuracy.
    """
    import pypose

    translation, rotation = twist[:, :3], twist[:, 3:]
    small = rotation.detach().norm(dim=-1) < SMALL_ANGLE
    safe = torch.cat([translation, torch.where(small[:, None], torch.ones_like(rotation), rotation)], dim=-1)
    exact = pypose.se3(safe).Exp().matrix()[:, :3, :]
    first_order_rotation = torch.eye(3, dtype=twist.dtype, device=twist.device) + _skew(rotation)
    first_order_shift = translation + 0.5 * torch.linalg.cross(rotation, translation)
    first_order = torch.cat([first_order_rotation, first_order_shift[..., None]], dim=-1)
    return torch.where(small[:, None, None], first_order, exact)


def se3_exp_nerfstudio(twist: Float[Tensor, "n 6"]) -> Float[Tensor, "n 3 4"]:
    """Rigid motions exp(twist) through nerfstudio's map, whose value and gradient are right at zero too.

    Below 1e-2 rad it uses short series: there rotations are off by at most 1e-7 rad and gradients by 1e-4.

    Args:
        twist: translation first, then the rotation vector in radians.
    """
    return exp_map_SE3(twist)


def choose_exponential() -> tuple[str, Exponential]:
    """pypose's exponential where pypose is installed, nerfstudio's otherwise, with its provider's name."""
    try:
        import pypose  # noqa: F401
    except ImportError:
        return "nerfstudio", se3_exp_nerfstudio
    return "pypose", se3_exp_pypose


def fix_gauge(
    translation: Float[Tensor, "n 3"], rotation: Float[Tensor, "n 3"], centres: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """World-frame twists of all views less the seven freedoms that no image can tell: the mean camera stays.

    A similarity of the world moves every view by the same rotation, by the same translation, and by a translation
    proportional to its camera's position. The orthogonal projection takes these out: it is linear, differentiable,
    idempotent, and exact on the twists, so that a similarity is held to first order in the corrections. One view
    alone has nothing else, and stays.

    Args:
        translation: in world axes, of the motion about the world's origin.
        rotation: rotation vectors in world axes, radians.
        centres: the cameras' positions that define the scaling.
    """
    spread = centres - centres.mean(dim=0)
    translation = translation - translation.mean(dim=0)
    # Cameras in one place (one view) define no scale: then the spread is zero, and so is what is taken away.
    size = spread.square().sum().clamp(min=torch.finfo(spread.dtype).tiny)
    translation = translation - spread * ((spread * translation).sum() / size)
    return translation, rotation - rotation.mean(dim=0)


def _skew(vector: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 3"]:
    """Matrices of the cross product with each vector."""
    x, y, z = vector.unbind(dim=-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
