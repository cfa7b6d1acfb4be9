# SPDX-License-Identifier: Apache-2.0
"""Radiance of surface points in a view under each of its lights: direct light with shadows, and interreflection."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32

from pmni_nerfstudio.material.estimate import Material
from pmni_nerfstudio.material.interreflection import rays_of
from pmni_nerfstudio.material.lit_views import LoadedView, Surface
from pmni_nerfstudio.material.microfacet import DIFFUSE_SHARE, reflection

CHUNK_VALUES = 1 << 20
"""Image values (pixels times lights) to process at once, so that working memory stays below 200 MB."""


class Shading:
    """Shading of a surface of one material in one view."""

    def __init__(self, loaded: LoadedView, surface: Surface, material: Material, points: int) -> None:
        """Compute the radiance of the surface elements under the view's lights.

        Args:
            loaded: the view.
            surface: the surface.
            material: its material.
            points: number of points that will be asked for, on which the accuracy of the interreflection depends.
        """
        self._rays = rays_of(points)
        self._loaded, self._surface, self._material = loaded, surface, material
        elements = material.elements
        self._radiance = elements.radiance(elements.direct_light(loaded), material.element_albedo)

    def of(
        self, points: Float[np.ndarray, "q 3"], normals: Float[np.ndarray, "q 3"]
    ) -> tuple[Float32[np.ndarray, "q n"], Float32[np.ndarray, "q n"], Bool[np.ndarray, "q n"]]:
        """Radiance of points under the n lights, in units of the image values over the intensities.

        Returns:
            base: radiance per unit of base color times the exposure.
            layer: radiance of the specular layer.
            lit: whether the light reaches the point directly.
        """
        material = self._material
        cosines, strength = self._loaded.incidence(self._surface, points, normals)
        # Without a roughness there is no layer either, and any value does.
        base, layer = reflection(cosines, material.roughness or 1.0, material.is_metal)
        indirect = material.elements.transfer(points, normals, self._rays) @ self._radiance
        share = np.float32(0 if material.is_metal else DIFFUSE_SHARE)
        return base * strength + share * indirect, np.float32(material.layer) * layer * strength, strength > 0
