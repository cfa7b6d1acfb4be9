# SPDX-License-Identifier: Apache-2.0
"""Normals of the pixels of views under known lights, given an approximate surface that shadows and illuminates itself.

Photometric stereo of single pixels takes all light for direct light. Here the surface says which lights reach a pixel and
how much light comes from the rest of the surface and from the specular layer; what is left is solved again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

from pmni_nerfstudio.material.albedo_maps import robust_albedo
from pmni_nerfstudio.material.diffuse_model import DiffuseModel, fit_diffuse_model
from pmni_nerfstudio.material.interreflection import rays_of
from pmni_nerfstudio.material.lit_views import LitView, LoadedView, Surface
from pmni_nerfstudio.material.microfacet import NORMAL_REFLECTANCE, reflection
from pmni_nerfstudio.material.shading import CHUNK_VALUES
from pmni_nerfstudio.photometric.solver import least_absolute

_MAX_LAYER = 0.3
"""Values are used where the specular layer is at most this share of the diffuse reflection."""
_MIN_LIGHT_COSINE = 0.1
"""Least cosine between normal and light of values that are used: the surface says no more where light grazes it."""
_MIN_VALUES = 4
"""Pixels with fewer usable values keep their normals."""
_MIN_AGREEMENT = 0.3
"""Least cosine between a new normal and the surface's: beyond, the pixel shows something else than the surface does."""
_STEPS = 20
"""Maximum number of reweighting steps."""


@dataclass(frozen=True, eq=False)
class RefinedMaps:
    """Normals of all views, and how well the surface explains their images."""

    normals: list[Float32[np.ndarray, "h w 3"]]
    """Unit normals of each view, OpenCV camera axes; zero where they are not known."""
    residual: float
    """Mean absolute difference between the values of lit pixels and those of the surface, relative to their mean."""
    direct_residual: float
    """Residual of the model without interreflection."""


def refine_normals(views: Sequence[LitView], surface: Surface, brightest: float) -> RefinedMaps | None:
    """Solve the pixels of all views again, one view at a time.

    Args:
        views: views with their lights.
        surface: approximate surface.
        brightest: albedo of the brightest parts of the surface, on which the interreflection depends.

    Returns:
        None for a metal.

    Raises:
        PmniError: No image shows the surface, or an image is missing or broken.
    """
    model = fit_diffuse_model(views, surface, brightest)
    if model is None:
        return None
    maps, sums = [], np.zeros(3)
    for view in views:
        normals, of_view = _refine_view(view.load(), surface, model)
        maps.append(normals)
        sums += of_view
    total = max(float(sums[2]), float(np.finfo(np.float32).tiny))
    return RefinedMaps(maps, float(sums[0]) / total, float(sums[1]) / total)


def _refine_view(
    loaded: LoadedView, surface: Surface, model: DiffuseModel
) -> tuple[Float32[np.ndarray, "h w 3"], Float[np.ndarray, "3"]]:
    """Normals of a view; sums of absolute residuals with and without interreflection, and of the values."""
    photographs, view = loaded.photographs, loaded.view
    hit, points, normals = loaded.pixel_points(surface)
    pixels = np.flatnonzero(hit)
    elements = model.elements
    radiance = elements.radiance(elements.direct_light(loaded), model.albedo)
    found, sums = np.zeros((photographs.num_pixels, 3), np.float32), np.zeros(3)
    step = max(64, CHUNK_VALUES // len(photographs.stored))
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        values, clipped = photographs.linear(pixels[part])
        values = values.mean(axis=2)
        cosines, strength = loaded.incidence(surface, points[part], normals[part])
        indirect = elements.transfer(points[part], normals[part], rays_of(len(pixels))) @ radiance
        layer, transmitted = np.zeros_like(strength), strength
        if model.roughness is not None:
            layer = np.float32(model.layer) * reflection(cosines, model.roughness)[1] * strength
            # What the layer reflects does not reach the diffuse base (Schlick's approximation).
            transmitted = strength * (1 - NORMAL_REFLECTANCE) * (1 - (1 - cosines.light) ** 5)
        usable = (strength > 0) & ~clipped
        direct = cosines.light * transmitted
        albedo, of_part = _albedo(values - layer, direct, indirect, usable)
        sums += [*of_part, float(np.abs(np.where(usable, values, 0)).sum())]
        use = usable & (layer <= _MAX_LAYER * albedo * (direct + indirect)) & (cosines.light > _MIN_LIGHT_COSINE)
        camera = (points[part] - view.c2w[:3, 3]) @ view.c2w[:3, :3] / view.light_unit
        directions, _ = view.capture_view.lights.at(camera, view.capture_view.distance or 1.0)
        diffuse = np.where(use, (values - layer - albedo * indirect) / np.maximum(transmitted, 1e-6), 0)
        found[pixels[part]] = _solved(diffuse, use, directions, (normals[part] @ view.c2w[:3, :3]).astype(np.float32))
    image = np.zeros((*photographs.mask.shape, 3), np.float32)
    image[photographs.mask] = found
    return image, sums


def _albedo(
    values: Float32[np.ndarray, "q n"],
    direct: Float32[np.ndarray, "q n"],
    indirect: Float32[np.ndarray, "q n"],
    usable: Bool[np.ndarray, "q n"],
) -> tuple[Float32[np.ndarray, "q 1"], tuple[float, float]]:
    """Albedo of pixels, and sums of the absolute residuals with and without indirect light."""
    values = np.where(usable, values, 0)
    albedos, sums = [], []
    for shading in (direct + indirect, direct):
        albedos.append(robust_albedo(values[..., None], shading, usable)[0])
        sums.append(float(np.abs(values - np.where(usable, shading, 0) * albedos[-1]).sum()))
    return albedos[0], (sums[0], sums[1])


def _solved(
    diffuse: Float32[np.ndarray, "q n"],
    use: Bool[np.ndarray, "q n"],
    directions: Float32[np.ndarray, "..."],
    surface_normals: Float32[np.ndarray, "q 3"],
) -> Float32[np.ndarray, "q 3"]:
    """Unit normals from diffuse reflection of direct light; zero where too few values are usable."""
    scaled, regular = least_absolute(np.ascontiguousarray(diffuse, np.float32), use, directions, _STEPS)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit = scaled / np.maximum(length, np.float32(1e-12))
    agrees = (unit * surface_normals).sum(axis=1) > _MIN_AGREEMENT
    return np.where((regular & agrees & (use.sum(axis=1) >= _MIN_VALUES))[:, None], unit, np.float32(0))
