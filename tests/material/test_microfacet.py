# SPDX-License-Identifier: Apache-2.0
"""The reflection of glTF's material: the specification's formulas, and the normalization of the distribution."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.photometric import GltfMaterial

from pmni_nerfstudio.material.microfacet import Cosines, reflection


def directions(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normals, directions to lights and to cameras (n, 3) in the same hemisphere."""
    rng = np.random.default_rng(0)
    normals, lights, views = rng.standard_normal((3, count, 3))
    normals, lights, views = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (normals, lights, views))
    lights, views = (np.where((v * normals).sum(1, keepdims=True) < 0, -v, v) for v in (lights, views))
    keep = ((lights * normals).sum(1) > 0.01) & ((views * normals).sum(1) > 0.01)
    return normals[keep], lights[keep], views[keep]


def cosines(normals: np.ndarray, lights: np.ndarray, views: np.ndarray) -> Cosines:
    half = (lights + views) / np.linalg.norm(lights + views, axis=-1, keepdims=True)
    pairs = ((normals, lights), (normals, views), (normals, half), (views, half))
    return Cosines(*((a * b).sum(-1).astype(np.float32) for a, b in pairs))


@pytest.mark.parametrize("roughness", [0.12, 0.4, 1.0])
@pytest.mark.parametrize("metallic", [0, 1])
def test_reflection_is_that_of_the_specification(roughness: float, metallic: int):
    normals, lights, views = directions(2000)
    base, layer = reflection(cosines(normals, lights, views), roughness, metallic == 1)
    truth = GltfMaterial((0.7, 0.3, 0.1), roughness=roughness, metallic=metallic).radiance(
        normals, lights[:, None], views
    )
    found = base[:, None] * np.array([0.7, 0.3, 0.1]) + layer[:, None]
    np.testing.assert_allclose(found, truth[:, 0], rtol=2e-3, atol=1e-5)


def test_a_white_metal_reflects_all_light_but_what_masking_takes():
    """Integral over all directions of light, seen from above: masking takes more from rougher surfaces."""
    z, phi = np.meshgrid((np.arange(400) + 0.5) / 400, 2 * np.pi * (np.arange(200) + 0.5) / 200, indexing="ij")
    radius = np.sqrt(1 - z**2)
    lights = np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=-1).reshape(-1, 3)
    up = np.broadcast_to([0.0, 0.0, 1.0], lights.shape)
    shares = []
    for roughness in (0.3, 0.6, 1.0):
        base, layer = reflection(cosines(up, lights, up), roughness, True)
        shares.append(float((base + layer).mean() * 2))  # 2 pi of solid angle, and radiance times pi
    assert 0.98 < shares[0] < 1.005
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] == pytest.approx(1 - np.log(2), rel=1e-3)  # closed form for a roughness of one
