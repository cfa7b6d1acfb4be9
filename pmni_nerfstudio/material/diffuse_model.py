# SPDX-License-Identifier: Apache-2.0
"""Diffuse albedo of the elements of a surface and its specular layer, on a scale that interreflection needs.

The lights' absolute intensity is not known, and with it the albedo's scale, on which interreflection depends: callers say
which albedo the brightest elements have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.material.estimate import doubt_about
from pmni_nerfstudio.material.fit import MaterialFit, fit_material, matte_fit
from pmni_nerfstudio.material.interreflection import Interreflection
from pmni_nerfstudio.material.lit_views import LitView, Surface
from pmni_nerfstudio.material.samples import SAMPLES, gather_lit_samples, number_of_elements

_BRIGHTEST_QUANTILE = 0.999
"""Quantile of the albedo that stands for the brightest elements."""
_ROUNDS = 2
"""Fits with the light between elements, after one without."""


@dataclass(frozen=True, eq=False)
class DiffuseModel:
    """A dielectric surface under known lights."""

    elements: Interreflection
    albedo: Float[np.ndarray, " e"]
    """Diffuse albedo of the elements, from 0 to 1."""
    roughness: float | None
    """Perceptual roughness of the specular layer; None: there is no layer, or it is doubtful."""
    layer: float
    """Strength of the layer, in units of the image values."""


def fit_diffuse_model(
    views: Sequence[LitView], surface: Surface, brightest: float, count: int = SAMPLES
) -> DiffuseModel | None:
    """Fit albedo and specular layer by alternation with the interreflection.

    Args:
        views: views with their lights.
        surface: the surface that they show.
        brightest: albedo of the brightest elements.
        count: image values to use, about.

    Returns:
        None for a metal, which has no diffuse reflection.

    Raises:
        PmniError: No image shows the surface, or an image is missing or broken.
    """
    elements = Interreflection(surface, number_of_elements(views, count))
    samples, direct = gather_lit_samples(views, surface, elements)
    fit = fit_material(samples)
    is_matte = doubt_about(fit) is not None
    if fit.kind == "metal" and not is_matte:
        return None
    if is_matte:
        fit = matte_fit(samples)
    albedo = _scaled_albedo(fit, elements, brightest)
    for _ in range(_ROUNDS):
        between = [elements.between(light, albedo) for light in direct]
        indirect = np.empty(len(samples.element), np.float32)
        for index, received in enumerate(between):
            mine = samples.view == index
            indirect[mine] = received[samples.element[mine], samples.light[mine]]
        fit = matte_fit(samples, indirect) if is_matte else fit_material(samples, indirect, ["dielectric"])
        albedo = _scaled_albedo(fit, elements, brightest)
    return DiffuseModel(elements, albedo, None if is_matte else fit.roughness, 0.0 if is_matte else fit.layer)


def _scaled_albedo(fit: MaterialFit, elements: Interreflection, brightest: float) -> Float[np.ndarray, " e"]:
    """Albedo of all elements, given that of the brightest ones."""
    values = fit.albedo.mean(axis=1)
    white = max(float(np.quantile(values, _BRIGHTEST_QUANTILE)) / brightest, float(np.finfo(np.float32).tiny))
    return elements.spread(elements.points[fit.elements], values / white).clip(0, 1)
