# SPDX-License-Identifier: Apache-2.0
"""Material and base color of a result from its images under known lights, tested on a view that is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.export.gltf import Reflectance
from pmni_nerfstudio.export.photographs import Photograph
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.material.albedo_maps import AlbedoMaps
from pmni_nerfstudio.material.estimate import Material, estimate_material
from pmni_nerfstudio.material.find_capture import FoundCapture
from pmni_nerfstudio.material.lit_views import Surface, lit_views
from pmni_nerfstudio.material.relighting import Relit, relight

_MIN_VIEWS = 4
"""Fewest views of which one is held out."""
_POOR_DB = 20.0
"""Ratio below which rendered and real images have little in common."""


@dataclass(frozen=True, eq=False)
class Appearance:
    """Material and base color of a result, with a test of them."""

    capture: Path
    """Folder or file of the images under known lights."""
    material: Material
    relit: Relit | None
    """Comparison on the view that was held out; None: there are too few views."""
    photographs: Callable[[], Iterable[Photograph]]
    """Reads base color maps of all views, in linear light."""

    @property
    def reflectance(self) -> Reflectance:
        """glTF's factors; the default ones where the roughness is not known."""
        material = self.material
        if material.roughness is None:
            return Reflectance()
        return Reflectance(material.roughness, float(material.is_metal), material.specular)

    def record(self) -> dict[str, Any]:
        """Figures for asset.json."""
        material, fit, used = self.material, self.material.fit, self.reflectance
        record: dict[str, Any] = {
            "capture": str(self.capture),
            "is_measured": material.roughness is not None,
            "doubt": material.doubt,
            "roughness": used.roughness,
            "roughness_range": None if material.roughness is None else list(fit.roughness_range),
            "metallic": used.metallic,
            "specular": used.specular,
            "median_relative_residual": fit.residual,
            "white_image_value": material.exposure,
            "held_out": None,
        }
        if self.relit is not None:
            names = ("view", "image", "psnr_db", "psnr_worst_db", "psnr_linear_db", "unseen")
            record["held_out"] = {name: getattr(self.relit, name) for name in names}
        return record

    def lines(self) -> list[str]:
        """Summary for the user."""
        material, fit = self.material, self.material.fit
        residual = f"median residual {fit.residual:.1%}"
        if material.roughness is None:
            lines = [f"roughness unknown, {self.reflectance.roughness} is written: {material.doubt}; {residual}"]
        else:
            low, high = fit.roughness_range
            kind = "metal" if material.is_metal else f"specular {material.specular:.2f}"
            lines = [f"roughness {material.roughness:.2f} ({low:.2f} to {high:.2f}), {kind}, {residual}"]
        if self.relit is not None:
            lines.append(f"view {self.relit.view}, held out, relit with {self.relit.psnr_db:.1f} dB")
        return lines

    def warnings(self) -> list[str]:
        """Warnings of one line each."""
        if self.relit is None or self.relit.psnr_db >= _POOR_DB:
            return []
        return [
            f"rendered images of view {self.relit.view} have only {self.relit.psnr_db:.1f} dB against its photographs; check "
            f"that mesh and poses fit {self.capture}, see relit.png"
        ]


def measure_appearance(
    found: FoundCapture, scene: Scene, c2w: Float[np.ndarray, "n 4 4"], mesh: trimesh.Trimesh, temporary: Path
) -> Appearance:
    """Estimate the material and the base color of all views.

    With enough views, one is left out of the fit, and its images are compared with rendered ones.

    Args:
        found: the capture.
        scene: its scene, with the result's intrinsics.
        c2w: the result's poses in the world of the mesh, OpenCV axes.
        mesh: the result's mesh.
        temporary: folder for the maps, which has to exist as long as `Appearance.photographs` is used.

    Raises:
        PmniError: The capture is not the scene's, a file is missing or broken, or nothing of the mesh is seen.
    """
    surface = Surface(mesh, RayCaster(mesh))
    views = lit_views(found.capture, scene, c2w, surface, found.gamma)
    held_out = len(views) // 2 if len(views) >= _MIN_VIEWS else None
    material = estimate_material([view for index, view in enumerate(views) if index != held_out], surface)
    maps = AlbedoMaps(temporary, views)
    maps.write(surface, material)
    relit = None
    if held_out is not None:
        relit = relight(views[held_out], surface, material, maps.photographs(without=held_out))
    return Appearance(found.path, material, relit, maps.photographs)
