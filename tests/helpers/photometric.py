# SPDX-License-Identifier: Apache-2.0
"""Images under known lights of analytic surfaces: Lambert and Blinn-Phong, attached and cast shadows; files of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
import trimesh

from helpers.scenes import (
    FILE_FROM_OPENCV,
    AnalyticScene,
    Ellipsoid,
    Intersect,
    analytic_scene,
    fitting_intrinsics,
    irregular_ring,
    similarity,
)
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.photometric.lights import Lights

BODY = Ellipsoid((0.0, 0.0, 0.0), (0.8, 0.6, 0.7))
BUMP = Ellipsoid((0.55, 0.1, 0.35), (0.25, 0.3, 0.35))


def two_bodies(origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First hits of rays with BODY and BUMP, which cast shadows on each other; see helpers.scenes.Intersect."""
    hits = [body.intersect(origins, directions) for body in (BODY, BUMP)]
    distances = np.stack([distance for distance, _ in hits])
    nearest = np.where(np.isfinite(distances), distances, np.inf).argmin(axis=0)
    normals = np.where(nearest[..., None] == 0, hits[0][1], hits[1][1])
    return np.take_along_axis(distances, nearest[None], 0)[0], normals


def cap_directions(count: int, half_angle_deg: float = 50.0, turn: float = 0.3) -> np.ndarray:
    """Unit directions (n, 3) to lights, evenly over a cap about the view's axis; OpenCV camera axes."""
    k = np.arange(count)
    z = 1 - (1 - np.cos(np.deg2rad(half_angle_deg))) * (k + 0.5) / count
    angle = k * np.pi * (3 - np.sqrt(5)) + turn
    across = np.sqrt(1 - z * z)
    return np.stack([across * np.cos(angle), across * np.sin(angle), -z], axis=1)


@dataclass(frozen=True)
class Material:
    """Blinn-Phong material."""

    albedo: tuple[float, float, float] = (0.6, 0.6, 0.6)
    gloss: float = 0.0
    """Specular coefficient."""
    shininess: float = 60.0

    def radiance(self, normals: np.ndarray, lights: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Radiance (p, n, 3) of points with unit normals (p, 3) towards views (p, 3) in light from directions (p, n, 3)."""
        half = lights + views[:, None]
        half /= np.linalg.norm(half, axis=-1, keepdims=True)
        specular = self.gloss * np.maximum((half * normals[:, None]).sum(-1), 0) ** self.shininess
        cosine = np.maximum((lights * normals[:, None]).sum(-1), 0)
        return cosine[..., None] * np.array(self.albedo) + specular[..., None]


@dataclass(frozen=True)
class GltfMaterial(Material):
    """glTF's metallic-roughness material, as the pseudocode of its specification in appendix B has it, times pi."""

    roughness: float = 0.4
    metallic: float = 0.0
    specular: float = 1.0
    """Specular factor of KHR_materials_specular."""

    def radiance(self, normals: np.ndarray, lights: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Radiance of each surface point under each light."""
        color = np.array(self.albedo)
        n, v = normals[:, None], views[:, None]
        h = (lights + v) / np.linalg.norm(lights + v, axis=-1, keepdims=True)
        nl, nv, nh, vh = ((a * b).sum(-1, keepdims=True) for a, b in ((n, lights), (n, v), (n, h), (v, h)))
        nl, nv = np.maximum(nl, 0), np.maximum(nv, 1e-6)
        alpha = self.roughness**2
        D = alpha**2 / (np.pi * (nh**2 * (alpha**2 - 1) + 1) ** 2)
        G = 1.0
        for cosine in (nl, nv):
            G = G * 2 * cosine / (cosine + np.sqrt(alpha**2 + (1 - alpha**2) * cosine**2))
        specular = D * G / (4 * np.maximum(nl * nv, 1e-9))
        fresnel = self.specular * (0.04 + 0.96 * (1 - np.abs(vh)) ** 5)
        dielectric = (1 - fresnel) * color / np.pi + fresnel * specular
        metal = specular * (color + (1 - color) * (1 - np.abs(vh)) ** 5)
        return np.pi * nl * ((1 - self.metallic) * dielectric + self.metallic * metal)


def render(
    truth: AnalyticScene,
    view: int,
    lights: Lights,
    material: Material = Material(),
    casting: Intersect | None = None,
    unit_distance: float = 1.0,
) -> np.ndarray:
    """Images (n, H, W, 3) of a view under its lights, zero off the mask, in the linear units of albedo.

    Args:
        truth: maps and cameras.
        view: index of the view.
        lights: in the view's camera, near ones in its unit-sphere units.
        material: of the surface.
        casting: surface that casts shadows, in the unit-sphere world; None: only attached shadows.
        unit_distance: distance at which near lights have their intensity.
    """
    mask, normals = truth.masks[view], truth.normals[view][truth.masks[view]]
    y, x = np.nonzero(mask)
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(truth.K[view]).T
    points = rays * truth.depths[view][mask][:, None]
    directions = np.broadcast_to(lights.vectors, (len(points), len(lights), 3))
    strength = np.ones((len(points), len(lights)))
    if lights.is_near:
        offsets = lights.vectors[None] - points[:, None]
        distance = np.linalg.norm(offsets, axis=-1)
        directions, strength = offsets / distance[..., None], (unit_distance / distance) ** 2
        if lights.axes is not None:
            strength *= np.maximum(-(directions * lights.axes).sum(-1), 0) ** lights.exponents
    cosine = (directions * normals[:, None]).sum(-1)
    lit = cosine > 0
    if casting is not None:
        c2w = truth.c2w[view]
        # From a little off the surface, so that it does not shadow itself.
        start = (points + 1e-3 * normals) @ c2w[:3, :3].T + c2w[:3, 3]
        lit &= ~(casting(start[:, None], directions @ c2w[:3, :3].T)[0] > 0)
    radiance = material.radiance(normals, directions, -rays / np.linalg.norm(rays, axis=1, keepdims=True))
    values = (lit * strength)[..., None] * radiance
    out = np.zeros((len(lights), *mask.shape, 3))
    out[:, mask] = np.moveaxis(values, 1, 0) * lights.intensities[:, None]
    return out


def as_png(image: np.ndarray, exposure: float = 1.0, bits: int = 16) -> np.ndarray:
    """Image as stored; values above 1 are clipped."""
    top = 2**bits - 1
    return np.round(top * np.clip(exposure * image, 0, 1)).astype(np.uint16 if bits == 16 else np.uint8)


def angles_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between vectors (..., 3)."""
    a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a.astype(float), b.astype(float)))
    # The chord is accurate for small angles, unlike the cosine.
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


@dataclass(frozen=True, eq=False)
class CaptureFiles:
    """A small capture with known truth, and ways to write it."""

    truth: AnalyticScene
    images: list[np.ndarray]
    """(n, H, W, 3) uint16 of each view."""
    lights: list[Lights]

    def write_folders(self, root: Path, has_filenames: bool = True) -> Path:
        """DiLiGenT-MV's raw layout, without normals."""
        calibration: dict[str, np.ndarray] = {"KK": self.truth.K[0]}
        for i, pose in enumerate(self.truth.data_c2w):
            w2c = np.linalg.inv(pose)
            calibration |= {f"Rc_{i + 1}": w2c[:3, :3], f"Tc_{i + 1}": w2c[:3, 3:]}
            view = self._write_images(root, i)
            np.savetxt(view / "light_directions.txt", self.lights[i].vectors * FILE_FROM_OPENCV)
            np.savetxt(view / "light_intensities.txt", self.lights[i].intensities)
            if has_filenames:
                names = [f"{j:03d}.png" for j in range(1, len(self.images[i]) + 1)]
                (view / "filenames.txt").write_text("\n".join(names))
        scipy.io.savemat(root / "Calib_Results.mat", calibration)
        return root

    def write_lp(self, root: Path, is_shared: bool = False) -> Path:
        """Folders with .lp files, the first line their number, and intrinsics.json."""
        for i in range(len(self.images)):
            view = self._write_images(root, i)
            vectors = self.lights[i].vectors * FILE_FROM_OPENCV
            rows = [f"{j:03d}.PNG {x:.9f} {y:.9f} {z:.9f}" for j, (x, y, z) in enumerate(vectors, start=1)]
            # In another order than the images: lines are found by name.
            text = "\n".join([str(len(rows)), *rows[::-1]])
            ((root if is_shared else view) / "dome.lp").write_text(text + "\n")
        np.savetxt(root / "light_intensities.txt", self.lights[0].intensities)
        self.write_intrinsics(root)
        return root

    def write_json(self, root: Path, **more) -> Path:
        """photometric.json, with poses."""
        views = []
        for i, c2w in enumerate(self.truth.data_c2w):
            view = self._write_images(root, i)
            key = "position" if self.lights[i].is_near else "direction"
            lights = [
                {key: (vector * FILE_FROM_OPENCV).tolist(), "intensity": intensity.tolist()}
                for vector, intensity in zip(self.lights[i].vectors, self.lights[i].intensities)
            ]
            axes, exponents = self.lights[i].axes, self.lights[i].exponents
            if axes is not None and exponents is not None:
                for light, axis, exponent in zip(lights, axes * FILE_FROM_OPENCV, exponents):
                    light.update(axis=axis.tolist(), exponent=float(exponent))
            images = [f"{view.name}/{j:03d}.png" for j in range(1, len(lights) + 1)]
            views.append(
                {"name": view.name, "mask": f"{view.name}/mask.png", "images": images, "lights": lights}
                | {"c2w": c2w.tolist(), "intrinsics": _intrinsics(self.truth.K[i])}
            )
        (root / "photometric.json").write_text(json.dumps({"light_axes": "camera", "views": views} | more))
        return root

    def write_luces(self, root: Path) -> Path:
        """Folders with led_params.txt as LUCES has it: OpenCV axes, millimeters, a trailing zero in each line."""
        for i in range(len(self.images)):
            view = self._write_images(root, i)
            lights, K = self.lights[i], self.truth.K[i]
            depth = np.nanmean(self.truth.depths[i]) * np.cbrt(np.linalg.det(self.truth.world_from_unit[:3, :3]))
            width, height = self.truth.size
            head = f"{len(lights)} {width} {height} {K[0, 0]} {K[0, 2]} {K[1, 2]} {depth}"
            axes = lights.axes if lights.axes is not None else np.tile([0.0, 0, 1], (len(lights), 1))
            exponents = lights.exponents if lights.exponents is not None else np.zeros(len(lights))
            rows = np.column_stack([lights.vectors, axes, lights.intensities, exponents, np.zeros(len(lights))])
            text = [" ".join(f"{value:.6f}" for value in row) for row in rows]
            (view / "led_params.txt").write_text("\n".join(["N_img nrows ncols f x0 y0 mean_distance", head, *text]))
        return root

    def write_intrinsics(self, root: Path) -> None:
        size = dict(zip(("w", "h"), self.truth.size))
        (root / "intrinsics.json").write_text(json.dumps(_intrinsics(self.truth.K[0]) | size))

    def _write_images(self, root: Path, i: int) -> Path:
        view = root / f"view_{i + 1:02d}"
        view.mkdir(parents=True)
        write_png(view / "mask.png", self.truth.masks[i])
        for j, image in enumerate(self.images[i], start=1):
            write_png(view / f"{j:03d}.png", image)
        return view


def _intrinsics(K: np.ndarray) -> dict[str, float]:
    return {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}


def make_truth(num_views: int = 4, width: int = 56, height: int = 48, distance: float = 15.0) -> AnalyticScene:
    """Views of `two_bodies` with one K, in a world in millimeters."""
    K, c2w = fitting_intrinsics(width, height, distance), irregular_ring(num_views, distance, np.random.default_rng(4))
    return analytic_scene(two_bodies, K, c2w, (width, height), similarity(50, (10, 40, -20), (3, 5, -8)))


def body_mesh(truth: AnalyticScene) -> trimesh.Trimesh:
    """Mesh of `two_bodies` in the data world, whose bodies intersect."""
    bodies = []
    for body in (BODY, BUMP):
        sphere = trimesh.creation.icosphere(subdivisions=5)
        bodies.append(trimesh.Trimesh(sphere.vertices * body.semi_axes + body.center, sphere.faces, process=False))
    mesh = trimesh.util.concatenate(bodies)
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh.apply_transform(truth.world_from_unit)


def make_capture(num_lights: int = 16, material: Material = Material((0.5, 0.4, 0.3)), **size) -> CaptureFiles:
    """Distant lights of different colors and strengths, cast shadows, 16 bits."""
    truth = make_truth(**size)
    rng = np.random.default_rng(8)
    lights = Lights(cap_directions(num_lights), rng.uniform(0.7, 1.4, (num_lights, 3)))
    images = [as_png(render(truth, view, lights, material, two_bodies), 0.8) for view in range(len(truth.c2w))]
    return CaptureFiles(truth, images, [lights] * len(images))


def make_near_capture(num_lights: int = 16, is_one_sided: bool = False) -> CaptureFiles:
    """Near lights on a ring about the camera, about as far from the object as it is wide; without cast shadows."""
    truth = make_truth(distance=5.0)
    # Millimeters in the files, the unit sphere's units in the renderer.
    scale = float(np.cbrt(np.linalg.det(truth.world_from_unit[:3, :3])))
    turn = 2 * np.pi * np.arange(num_lights) / num_lights
    radius = np.where(np.arange(num_lights) % 2, 1.2, 2.0)
    positions = np.stack([radius * np.cos(turn), radius * np.sin(turn), np.full(num_lights, 2.5)], axis=1)
    axes = exponents = None
    if is_one_sided:
        axes = [0, 0, 5.0] - positions
        axes, exponents = axes / np.linalg.norm(axes, axis=1, keepdims=True), np.full(num_lights, 2.0)
    ones = np.ones((num_lights, 3))
    near = Lights(positions, ones, True, axes, exponents)
    images = [as_png(render(truth, view, near, unit_distance=2.5), 0.7) for view in range(len(truth.c2w))]
    return CaptureFiles(truth, images, [Lights(positions * scale, ones, True, axes, exponents)] * len(images))
