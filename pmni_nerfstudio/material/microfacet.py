# SPDX-License-Identifier: Apache-2.0
"""Reflection of glTF 2.0's metallic-roughness material: a dielectric with a GGX microfacet layer, or a metal.

As in appendix B of the specification of glTF 2.0: distribution of Trowbridge and Reitz with alpha = roughness^2,
separable Smith masking and Schlick's Fresnel term. The dielectric has a reflectance of 0.04 at normal incidence, and
a diffuse base that receives what the layer does not reflect; KHR_materials_specular scales the layer by a specular
factor.

Radiance is relative to that of a white diffuse surface that faces the light, so that a factor of pi drops out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

NORMAL_REFLECTANCE = 0.04
"""Fresnel reflectance at normal incidence of glTF's dielectric, whose index of refraction is 1.5."""
DIFFUSE_SHARE = 1 - NORMAL_REFLECTANCE
"""Approximate share of light from all directions that reaches the diffuse base."""


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
    cosines: Cosines, roughness: float, is_metal: bool = False
) -> tuple[Float32[np.ndarray, "*b"], Float32[np.ndarray, "*b"]]:
    """Radiance of the reflection of light of unit intensity: base color times the first part, plus the second one.

    Args:
        cosines: directions.
        roughness: perceptual roughness, above zero.
        is_metal: whether glTF's metallic factor is one instead of zero.

    Returns:
        base: of a dielectric, the diffuse reflection; of a metal, the reflection with the color of normal incidence.
        layer: of a dielectric, the specular layer with a specular factor of one; of a metal, the white part of the
            Fresnel term.
    """
    light, view, half, difference = cosines
    schlick = (1 - difference) ** 5
    alpha2 = np.float32(roughness**4)
    # 1 - (1 - alpha^2) cos^2, without the cancellation near a cosine of one.
    spread = (1 - half) * (1 + half) + alpha2 * half**2
    mirrors = light * alpha2 / spread**2
    for cosine in (light, view):
        mirrors = mirrors / (cosine + np.sqrt(alpha2 + (1 - alpha2) * cosine**2))
    if is_metal:
        return mirrors * (1 - schlick), mirrors * schlick
    fresnel = NORMAL_REFLECTANCE + (1 - NORMAL_REFLECTANCE) * schlick
    return light * (1 - fresnel), mirrors * fresnel
