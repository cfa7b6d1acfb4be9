# SPDX-License-Identifier: Apache-2.0
"""Normals of a bowl, whose light between its parts and cast shadows have closed forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from helpers.photometric import angles_deg, cap_directions

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.material.lit_views import LitView, LoadedView, Surface
from pmni_nerfstudio.material.normal_refinement import RefinedMaps, refine_normals
from pmni_nerfstudio.photometric.capture import CaptureView
from pmni_nerfstudio.photometric.lights import Lights
from pmni_nerfstudio.photometric.photographs import Photographs
from pmni_nerfstudio.photometric.solver import solve

SIZE, FOCAL, DISTANCE = 48, 380.0, 8.0
RIM_Z = 0.3
"""The bowl is the part of the unit sphere with z < RIM_Z, seen from above; the camera looks along -z."""
LIGHTS = Lights(cap_directions(24, half_angle_deg=40.0), np.ones((24, 3)))
K = np.array([[FOCAL, 0, (SIZE - 1) / 2], [0, FOCAL, (SIZE - 1) / 2], [0, 0, 1]])
C2W = np.diag([1.0, -1.0, -1.0, 1.0])
C2W[2, 3] = DISTANCE


@dataclass(frozen=True, eq=False)
class InMemory(LitView):
    """A view whose images are no files."""

    photographs: Photographs

    def load(self) -> LoadedView:
        return LoadedView(self, self.photographs, self.K)


def bowl_mesh(depth: float = 1.0) -> Surface:
    """Inside of the bowl; a depth below one makes it shallower."""
    ball = trimesh.creation.icosphere(subdivisions=5)
    kept = ball.vertices[ball.faces][:, :, 2].max(axis=1) < RIM_Z
    mesh = trimesh.Trimesh(ball.vertices * [1, 1, depth], ball.faces[kept][:, ::-1], process=False)
    return Surface(mesh, RayCaster(mesh))


def is_lit(points: np.ndarray, to_light: np.ndarray) -> np.ndarray:
    """Whether light from directions (n, 3) reaches points (p, 3) of the bowl: its ray leaves through the opening."""
    exit_z = points[:, 2, None] - 2 * (points @ to_light.T) * to_light[:, 2]
    return exit_z >= RIM_Z


def capture(albedo: float, gain: float = 0.5) -> tuple[InMemory, np.ndarray, np.ndarray]:
    """View of a matte bowl, and points and normals in the camera of the pixels of its mask.

    All points of a sphere receive the same light from each other: every form factor is the share of the sphere's area. A bowl
    with the share a of the sphere, and the mean direct irradiance E, has the indirect irradiance r E a / (1 - r a).
    """
    y, x = np.mgrid[:SIZE, :SIZE]
    rays = pixel_directions(K, np.stack([x, y], axis=-1).reshape(-1, 2)) @ C2W[:3, :3].T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    along = -rays[:, 2] * DISTANCE
    root = np.sqrt(np.maximum(along**2 - DISTANCE**2 + 1, 0))
    points = C2W[:3, 3] + (along + root)[:, None] * rays  # the far side
    mask = (along**2 - DISTANCE**2 + 1 > 0) & (points[:, 2] < RIM_Z - 0.05)
    points, to_light = points[mask], LIGHTS.vectors @ C2W[:3, :3].T

    def direct(at: np.ndarray) -> np.ndarray:
        return np.maximum(-at @ to_light.T, 0) * is_lit(at, to_light)

    share = (1 + RIM_Z) / 2
    samples = np.random.default_rng(0).standard_normal((200_000, 3))
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    mean = direct(samples[samples[:, 2] < RIM_Z]).mean(axis=0)
    values = gain * albedo * (direct(points) + albedo * mean * share / (1 - albedo * share))
    photographs = Photographs(
        values.T[..., None].astype(np.float32), np.inf, mask.reshape(SIZE, SIZE), np.ones((len(LIGHTS), 1))
    )
    view = CaptureView("0", tuple(Path(str(i)) for i in range(len(LIGHTS))), LIGHTS, Path("mask"))
    return InMemory(view, K, (SIZE, SIZE), C2W, 1.0, None, 1.0, photographs), points, -points @ C2W[:3, :3]


def errors_deg(maps: RefinedMaps, view: InMemory, truth: np.ndarray) -> np.ndarray:
    found = maps.normals[0][view.photographs.mask]
    known = found.any(axis=1)
    assert known.mean() > 0.5
    return angles_deg(found[known], truth[known])


def single_pixel_errors_deg(view: InMemory, truth: np.ndarray) -> np.ndarray:
    """Errors of photometric stereo of single pixels."""
    values, clipped = view.photographs.linear(slice(None))
    return angles_deg(solve(values[..., 0], clipped, LIGHTS.vectors).scaled_normals, truth)


def test_light_between_parts_of_a_bowl_is_removed():
    view, _, truth = capture(albedo=0.8)
    plain = single_pixel_errors_deg(view, truth)
    assert np.median(plain) > 5  # flat, as the light from all sides makes it
    maps = refine_normals([view], bowl_mesh(), 0.8)
    assert maps is not None
    assert np.median(errors_deg(maps, view, truth)) < 1.5
    assert maps.residual < 0.4 * maps.direct_residual


@pytest.mark.parametrize("albedo", [0.4, 0.8])
def test_normals_on_a_surface_that_is_too_shallow_are_nearer_to_the_truth(albedo: float):
    view, _, truth = capture(albedo)
    maps = refine_normals([view], bowl_mesh(depth=0.85), albedo)
    assert maps is not None
    assert errors_deg(maps, view, truth).mean() < 0.5 * single_pixel_errors_deg(view, truth).mean()


def test_too_much_light_between_parts_shows_in_the_residuals():
    """By which the refinement is left out."""
    view, _, _ = capture(albedo=0.3)
    maps = refine_normals([view], bowl_mesh(depth=0.85), 0.9)
    assert maps is not None and maps.residual > maps.direct_residual


def test_the_image_values_may_have_any_scale():
    one, many = (refine_normals([capture(0.8, gain)[0]], bowl_mesh(), 0.8) for gain in (0.5, 50.0))
    assert one is not None and many is not None
    assert np.median(angles_deg(*(maps.normals[0][one.normals[0].any(axis=-1)] for maps in (one, many)))) < 0.1


def test_clipped_values_are_not_used():
    view, _, truth = capture(0.8)
    stored = view.photographs.stored.copy()
    top = float(np.quantile(stored, 0.9))
    clipped = replace(view, photographs=replace(view.photographs, stored=stored.clip(max=top), top=top))
    maps = refine_normals([clipped], bowl_mesh(), 0.8)
    assert maps is not None
    found = maps.normals[0][view.photographs.mask]
    known = found.any(axis=1)
    assert known.mean() > 0.5 and np.median(angles_deg(found[known], truth[known])) < 2.5
