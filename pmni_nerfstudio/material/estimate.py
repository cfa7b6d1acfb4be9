# SPDX-License-Identifier: Apache-2.0
"""The material of an object from its images under known lights, and whether it can be trusted.

The lights' absolute intensity is not known, so that base colors have an unknown common factor, the exposure. If there
are highlights, the exposure is chosen such that the object has glTF's reflectance of 0.04 at normal incidence. If
base colors would then be brighter than white, the exposure is chosen by the brightest of them instead, and the
specular layer, which is weaker than glTF's, gets a specular factor below one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from pmni_nerfstudio.material.fit import LEAST_ROUGHNESS, MaterialFit, fit_material, matte_fit
from pmni_nerfstudio.material.interreflection import Interreflection
from pmni_nerfstudio.material.lit_views import LitView, Surface
from pmni_nerfstudio.material.samples import SAMPLES, LitSamples, gather_lit_samples, number_of_elements

_MIN_GAIN = 0.05
"""Least share of the robust cost that highlights have to explain: matte surfaces reach 0.002."""
_MAX_SPREAD = 1.8
"""Largest ratio of the ends of the range of roughness."""
_MAX_ROUGHNESS = 0.8
"""Highlights of rougher surfaces cannot be told from deviations from Lambert's law."""
_WHITE_QUANTILE = 0.999
_BRIGHTEST = 0.9
"""Base color of the brightest element."""
_ROUNDS = 2
"""Fits with the light between elements, after one without."""


@dataclass(frozen=True, eq=False)
class Material:
    """Roughness, specular and metallic factors of glTF for the whole object, and the scale of its base colors."""

    roughness: float | None
    """Perceptual roughness; None: it could not be measured, see `doubt`."""
    specular: float
    """Specular factor of KHR_materials_specular."""
    is_metal: bool
    exposure: float
    """Image value, over the light's intensity, of a white diffuse surface that faces the light."""
    doubt: str | None
    """Why the roughness is not known, in words; None: it is known."""
    fit: MaterialFit
    elements: Interreflection
    element_albedo: Float[np.ndarray, " e"]
    """Diffuse albedo of the elements, from 0 to 1, mean of the channels; zero for metals."""

    @property
    def layer(self) -> float:
        """Strength of the specular layer, in units of the image values; see `microfacet.reflection`."""
        return self.exposure if self.is_metal else self.fit.layer


def estimate_material(views: Sequence[LitView], surface: Surface, count: int = SAMPLES) -> Material:
    """Estimate the material by alternating fits of the material and of the interreflection.

    Args:
        views: views with their lights.
        surface: the surface that they show.
        count: image values to use, about.

    Raises:
        PmniError: No image shows the surface, or an image is missing or broken.
    """
    elements = Interreflection(surface, number_of_elements(views, count))
    samples, direct = gather_lit_samples(views, surface, elements)
    material = _material(fit_material(samples), samples, None, elements)
    for _ in range(_ROUNDS):
        if material.is_metal:
            break  # light between metals is not diffuse, and not modeled
        between = [elements.between(light, material.element_albedo) for light in direct]
        indirect = np.empty(len(samples.element), np.float32)
        for index, received in enumerate(between):
            mine = samples.view == index
            indirect[mine] = received[samples.element[mine], samples.light[mine]]
        material = _material(fit_material(samples, indirect, ["dielectric"]), samples, indirect, elements)
    return material


def _material(
    fit: MaterialFit, samples: LitSamples, indirect: Float32[np.ndarray, " m"] | None, elements: Interreflection
) -> Material:
    doubt = doubt_about(fit)
    if doubt is not None:
        fit = matte_fit(samples, indirect)
    brightest = float(np.quantile(fit.albedo.max(axis=1), _WHITE_QUANTILE)) / _BRIGHTEST
    exposure = max(fit.layer, brightest, float(np.finfo(np.float32).tiny))
    is_metal = fit.kind == "metal"
    albedo = elements.spread(elements.points[fit.elements], fit.albedo.mean(axis=1) / exposure).clip(0, 1)
    return Material(
        None if doubt else fit.roughness,
        1.0 if doubt or is_metal else fit.layer / exposure,
        is_metal,
        exposure,
        doubt,
        fit,
        elements,
        np.zeros_like(albedo) if is_metal else albedo,
    )


def doubt_about(fit: MaterialFit) -> str | None:
    """Why a fit's roughness cannot be trusted; None: it can."""
    low, high = fit.roughness_range
    if fit.gain < _MIN_GAIN:
        return f"there are no highlights (they would explain {max(fit.gain, 0):.1%} of the residuals)"
    if fit.roughness > _MAX_ROUGHNESS:
        return "highlights are too broad to be told from the diffuse reflection"
    if fit.roughness < 1.02 * LEAST_ROUGHNESS:
        return f"highlights are too narrow to be measured (roughness {LEAST_ROUGHNESS} or less)"
    if high / low > _MAX_SPREAD:
        return f"any roughness from {low:.2f} to {high:.2f} explains the images"
    return None
