# SPDX-License-Identifier: Apache-2.0
"""Synthetic captures in memory: maps and cameras from options, reproducible by seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from pmni_nerfstudio.synth.shapes import Shape

ShapeName = Literal["blob", "knot", "bracket", "figure", "vase", "sphere"]


@dataclass(kw_only=True)
class SynthConfig:
    """Object, cameras and measurement errors of a synthetic capture."""

    shape: ShapeName = "blob"
    """Object: blob (smooth, with bumps), knot (a tube with holes), bracket (flat faces, sharp edges, bores), figure (limbs), vase (hollow, fluted) or sphere (its poses are ambiguous)."""
    views: int = 20
    """Number of cameras, evenly spaced on a ring."""
    width: int = 153
    """Width of the maps in pixels."""
    height: int = 128
    """Height of the maps in pixels."""
    distance: float = 15.0
    """Distance of the cameras from the object's center in radii of the unit sphere; the focal length is chosen such that the object fills the frame."""
    elevation: float = 25.0
    """Elevation of the ring's cameras above the object's equator, in degrees."""
    clockwise: bool = False
    """Order the views clockwise on the ring, as seen from above."""
    jitter: float = 0.0
    """Deviation of the true cameras from the ring; 1: azimuth and elevation up to 5 degrees, roll 3 degrees, distance 5 percent, target 5 percent of the radius."""
    rotation_noise_deg: float = 0.0
    """Error of the written poses: root mean square rotation of each camera about the object, in degrees."""
    translation_noise: float = 0.0
    """Error of the written poses: standard deviation of each camera's translation along each axis, in radii of the unit sphere."""
    normal_noise_deg: float = 0.0
    """Noise of the normals, independent in each pixel: root mean square angle in degrees."""
    bias_deg: float = 0.0
    """Smooth bias of the normals in each view, as in photometric stereo: root mean square angle in degrees."""
    mask_noise_px: float = 0.0
    """Error of the mask contours: root mean square displacement in pixels; if not zero, each mask also gets a few holes."""
    world_scale: float = 55.0
    """Units of the data world (for example, mm) per radius of the unit sphere."""
    seed: int = 0
    """Random seed; poses, normals and masks use independent streams."""


@dataclass(frozen=True, eq=False)
class SynthScene:
    """A capture and its ground truth. Poses are camera-to-world, OpenCV axes, in the unit-sphere world."""

    names: tuple[str, ...]
    """Names of the views: file names without suffix."""
    K: np.ndarray
    """(3, 3) float64, pixel centers at integers, shared by all views."""
    c2w: np.ndarray
    """(N, 4, 4) float64, true poses."""
    c2w_rough: np.ndarray
    """(N, 4, 4) float64, poses with the pose noise."""
    world_from_unit: np.ndarray
    """(4, 4) similarity from the unit-sphere world to the data world."""
    masks: np.ndarray
    """(N, H, W) bool, with the mask noise."""
    normals: np.ndarray
    """(N, H, W, 3) float32, OpenCV camera axes, with the normal noise; unit length on the mask, zero elsewhere."""
    depth: np.ndarray
    """(N, H, W) float32, true z depth in radii of the unit sphere, NaN off the object."""


def make_scene(config: SynthConfig, shape: Shape | None = None, frame: int = 0) -> SynthScene:
    """Render a synthetic capture.

    Args:
        config: object, cameras and measurement errors.
        shape: the object instead of `config.shape`.
        frame: number of the moment. Cameras are the same at all moments, errors of normals and masks independent.

    Raises:
        PmniError: An option is out of range.
    """
    _check(config)
    # Imported here because torch takes seconds to load and the command line's help does not need it.
    from pmni_nerfstudio.geometry.cameras import pixel_rays
    from pmni_nerfstudio.synth.noise import disturb_mask, disturb_normals
    from pmni_nerfstudio.synth.render import render
    from pmni_nerfstudio.synth.rig import intrinsics, ring, rough_poses
    from pmni_nerfstudio.synth.shapes import SHAPES

    *of_cameras, normal_seed, mask_seed = np.random.SeedSequence(config.seed).spawn(4)
    if frame:
        normal_seed, mask_seed = (seed.spawn(frame)[-1] for seed in (normal_seed, mask_seed))
    ring_rng, pose_rng, normal_rng, mask_rng = (
        np.random.default_rng(seed) for seed in (*of_cameras, normal_seed, mask_seed)
    )
    K = intrinsics(config.width, config.height, config.distance)
    c2w = ring(config.views, config.elevation, config.distance, config.jitter, config.clockwise, ring_rng)
    masks, normals, depth = render(shape or SHAPES[config.shape], K, c2w, config.width, config.height)

    camera_rays = pixel_rays(K, np.eye(4), config.width, config.height)[1].reshape(config.height, config.width, 3)
    if config.normal_noise_deg or config.bias_deg:
        for view_normals, mask in zip(normals, masks):
            view_normals[:] = disturb_normals(
                view_normals, camera_rays, mask, config.normal_noise_deg, config.bias_deg, normal_rng
            )
    if config.mask_noise_px:
        noisy = np.stack([disturb_mask(mask, config.mask_noise_px, mask_rng) for mask in masks])
        # Background inside the noisy mask gets normals towards the camera.
        normals[noisy & ~masks] = np.array([0.0, 0.0, -1.0])
        normals[~noisy] = 0
        masks = noisy

    world_from_unit = np.diag([config.world_scale] * 3 + [1.0])
    world_from_unit[:3, 3] = config.world_scale * np.array(
        [0.15, -0.1, 0.25]
    )  # off-center, to expose code that assumes an object at the origin
    digits = max(2, len(str(config.views - 1)))
    return SynthScene(
        names=tuple(f"{i:0{digits}d}" for i in range(config.views)),
        K=K,
        c2w=c2w,
        c2w_rough=rough_poses(c2w, config.rotation_noise_deg, config.translation_noise, pose_rng),
        world_from_unit=world_from_unit,
        masks=masks,
        normals=normals,
        depth=depth,
    )


def _check(config: SynthConfig) -> None:
    for name, least in (("views", 2), ("width", 8), ("height", 8), ("distance", 2.0)):
        if not getattr(config, name) >= least:
            raise PmniError(f"--{name}: {getattr(config, name)} is too small; give at least {least}")
    for name in (
        "jitter",
        "rotation_noise_deg",
        "translation_noise",
        "normal_noise_deg",
        "bias_deg",
        "mask_noise_px",
        "seed",
    ):
        if not getattr(config, name) >= 0:
            raise PmniError(f"--{name.replace('_', '-')}: {getattr(config, name)} is negative; give 0 or more")
    if not config.world_scale > 0:
        raise PmniError(f"--world-scale: {config.world_scale} is not a scale; give a positive number")
