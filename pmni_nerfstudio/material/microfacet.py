# SPDX-License-Identifier: Apache-2.0
"""The dielectric of glTF 2.0's metallic-roughness material: a GGX microfacet layer over a diffuse base.

As in appendix B of the specification of glTF 2.0: distribution of Trowbridge and Reitz with alpha = roughness^2, separable
Smith masking, Schlick's Fresnel term with a reflectance of 0.04 at normal incidence, and a diffuse base that receives what
the layer does not reflect. KHR_materials_specular scales the Fresnel term by a specular factor.

Radiance is relative to that of a white diffuse surface that faces the light, so that a factor of pi drops out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

NORMAL_REFLECTANCE = 0.04
"""Fresnel reflectance at normal incidence of glTF's dielectric, whose index of refraction is 1.5."""


class Cosines(NamedTuple):
    """Cosines of the directions at which light falls on surface points and is seen; the first two are positive."""

    light: Float32[np.ndarray, "*b"]
    """Between normal and direction to the light."""
    view: Float32[np.ndarray, "*b"]
    """Between normal and direction to the camera."""
    half: Float32[np.ndarray, "*b"]
    """Between normal and half vector, the unit vector halfway from the light's direction to the camera's."""
    difference: Float32[np.ndarray, "*b"]
    """Between the direction to the camera and the half vector."""


def reflection(
    cosines: Cosines, roughness: float, specular: float = 1.0
) -> tuple[Float32[np.ndarray, "*b"], Float32[np.ndarray, "*b"]]:
    """Radiance of the two parts of the reflection, for light of unit intensity.

    Args:
        cosines: directions.
        roughness: perceptual roughness, above zero.
        specular: factor on the Fresnel term, by which the diffuse base loses light.

    Returns:
        diffuse: radiance per unit of base color.
        layer: radiance of the specular layer with a specular factor of one, whatever `specular` is.
    """
    light, view, half, difference = cosines
    fresnel = NORMAL_REFLECTANCE + (1 - NORMAL_REFLECTANCE) * (1 - difference) ** 5
    alpha2 = np.float32(roughness**4)
    # 1 - (1 - alpha^2) cos^2, without the cancellation near a cosine of one.
    spread = (1 - half) * (1 + half) + alpha2 * half**2
    distribution = alpha2 / spread**2
    visibility = 1.0
    for cosine in (light, view):
        visibility = visibility / (cosine + np.sqrt(alpha2 + (1 - alpha2) * cosine**2))
    return light * (1 - specular * fresnel), light * fresnel * distribution * visibility
