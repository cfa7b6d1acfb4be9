# SPDX-License-Identifier: Apache-2.0
"""Exponential map of SE(3), from pypose or nerfstudio, and the gauge freedom of a set of poses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from nerfstudio.cameras.lie_groups import exp_map_SE3
from torch import Tensor

Exponential = Callable[[Float[Tensor, "n 6"]], Float[Tensor, "n 3 4"]]

SMALL_ANGLE = 1e-7
"""Rotation angle in radians below which the first-order motion replaces pypose's."""


def se3_exp_pypose(twist: Float[Tensor, "n 6"]) -> Float[Tensor, "n 3 4"]:
    """Rigid motions exp(twist) through pypose's LieTensor (Wang et al., "PyPose", CVPR 2023).

    pypose divides differences that cancel by the fourth power of the angle: between 1e-16 and 1e-8 rad its gradient is
    off by up to four times the translation, even in double precision. Below SMALL_ANGLE the motion to first order in
    the rotation, accurate to 1e-14, is used instead.

    Args:
        twist: translation, then rotation vector in radians; double precision for full accuracy.
    """
    import pypose

    translation, rotation = twist[:, :3], twist[:, 3:]
    small = rotation.detach().norm(dim=-1) < SMALL_ANGLE
    safe = torch.cat([translation, torch.where(small[:, None], torch.ones_like(rotation), rotation)], dim=-1)
    exact = pypose.se3(safe).Exp().matrix()[:, :3, :]
    first_order_rotation = torch.eye(3, dtype=twist.dtype, device=twist.device) + _skew(rotation)
    first_order_translation = translation + 0.5 * torch.linalg.cross(rotation, translation)
    first_order = torch.cat([first_order_rotation, first_order_translation[..., None]], dim=-1)
    return torch.where(small[:, None, None], first_order, exact)


def se3_exp_nerfstudio(twist: Float[Tensor, "n 6"]) -> Float[Tensor, "n 3 4"]:
    """Rigid motions exp(twist) through nerfstudio's exponential map, with correct value and gradient at zero.

    Below 1e-2 rad it uses short series, with errors of at most 1e-7 rad in rotations and 1e-4 in gradients.

    Args:
        twist: translation, then rotation vector in radians.
    """
    return exp_map_SE3(twist)


def choose_exponential() -> tuple[str, Exponential]:
    """Name and function of the exponential map to use: pypose's where pypose is installed, else nerfstudio's."""
    try:
        import pypose  # noqa: F401
    except ImportError:
        return "nerfstudio", se3_exp_nerfstudio
    return "pypose", se3_exp_pypose


def fix_gauge(
    translation: Float[Tensor, "n 3"], rotation: Float[Tensor, "n 3"], centers: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Remove the gauge freedom from pose corrections: the seven degrees of freedom that images cannot determine.

    To first order a similarity of the world moves all views by one rotation, one translation, and translations
    proportional to the positions of the cameras. The corrections are projected orthogonally onto the complement of
    these motions, so that the mean camera and the scale stay. The projection is linear, differentiable and idempotent.
    A single view has gauge freedom only and does not move.

    Args:
        translation: translations in world axes, of motions about the world's origin.
        rotation: rotation vectors in world axes, radians.
        centers: camera centers, which define the scaling.
    """
    spread = centers - centers.mean(dim=0)
    translation = translation - translation.mean(dim=0)
    # Coincident cameras (or one view) define no scale: the spread is zero, and nothing is subtracted.
    size = spread.square().sum().clamp(min=torch.finfo(spread.dtype).tiny)
    translation = translation - spread * ((spread * translation).sum() / size)
    return translation, rotation - rotation.mean(dim=0)


def _skew(vector: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 3"]:
    """Cross-product matrices of vectors."""
    x, y, z = vector.unbind(dim=-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
