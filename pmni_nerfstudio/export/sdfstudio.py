# SPDX-License-Identifier: Apache-2.0
"""Scenes in sdfstudio's format, which nerfstudio's `sdfstudio-data` parser reads for neus, neus-facto and others.

    OUT/
      meta_data.json   cameras and paths, in the unit-sphere world
      rgb/NN.png       photographs, or images shaded from the normals; black off the object
      mask/NN.png      white on the object
      normal/NN.npy    (3, H, W) float32, (n + 1) / 2 of normals in OpenCV camera axes; 0.5 where there is none
      depth/NN.npy     (H, W) float32, z depth up to one scale factor per view; 0 where unknown

In meta_data.json, `worldtogt` takes the unit-sphere world to the data world. The keys `pmni_scene` and
`pmni_normals_folder` are additions of this package: they name the source scene, so that a surface trained on the
converted data can be evaluated against the ground truth of that scene.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track

from pmni_nerfstudio.data.atomic import atomic_path, write_json
from pmni_nerfstudio.data.depths import read_depths
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.geometry.hole_filling import fill_holes
from pmni_nerfstudio.geometry.transforms import orthonormalized

META = "meta_data.json"
SCENE_KEY, NORMALS_KEY = "pmni_scene", "pmni_normals_folder"

_LIGHT = np.array([0.4, 0.25, 0.88]) / np.linalg.norm([0.4, 0.25, 0.88])
"""Direction to the light in the unit-sphere world."""


def write_sdfstudio(
    folder: Path,
    scene: Scene,
    c2w: Float[np.ndarray, "n 4 4"],
    normals_folder: str | None = None,
) -> list[str]:
    """Write a scene in sdfstudio's format; meta_data.json is written last.

    Args:
        folder: existing output folder.
        scene: scene at the resolution of its files.
        c2w: poses of all views in the unit-sphere world, OpenCV axes.
        normals_folder: name of the folder from which the scene's normal maps were read, if it was chosen by name.

    Returns:
        Warnings, one line each.
    """
    photographs, warnings = _photographs(scene)
    if scene.depth_files is None:
        warnings.append(
            "no depth maps: zeros (unknown) are written instead, because nerfstudio reads normals only together with "
            "depths; leave mono-depth-loss-mult at 0, or run `pmni integrate` first"
        )
        depths = np.zeros(scene.masks.shape, dtype=np.float32)
    else:
        depths = read_depths(scene)
    for name in ("rgb", "mask", "normal", "depth"):
        (folder / name).mkdir(exist_ok=True)
    c2w = orthonormalized(c2w)
    console = Console(stderr=True)
    for view in track(range(scene.num_views), "Converting", console=console, transient=True):
        name, mask, normals = scene.names[view], scene.masks[view], scene.normals[view].astype(np.float32)
        if photographs is None:
            # A picture without holes: methods that compare colors would reproduce them.
            whole = fill_holes(normals, mask, scene.valid[view])
            image = _shaded_image(whole @ c2w[view, :3, :3].T, mask)
        else:
            with Image.open(photographs[view]) as photograph:
                image = np.where(mask[..., None], np.asarray(photograph.convert("RGB")), np.uint8(0))
        write_png(folder / "rgb" / f"{name}.png", image)
        write_png(folder / "mask" / f"{name}.png", mask)
        for kind, array in (("normal", np.moveaxis(normals, -1, 0) * 0.5 + 0.5), ("depth", depths[view])):
            with atomic_path(folder / kind / f"{name}.npy") as temporary:
                np.save(temporary, array)
    write_json(folder / META, _meta(scene, c2w, normals_folder))
    return warnings


def _shaded_image(normals: Float[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Gray image of normals in the unit-sphere world, black off the mask.

    Half-Lambert shading under a light that is fixed in the world: a surface point has the same gray in all views, and
    no part of the object is black.
    """
    gray = 30 + 210 * (0.5 + 0.5 * normals @ _LIGHT)
    return np.where(mask, np.round(gray), 0).astype(np.uint8)[..., None].repeat(3, axis=-1)


def _photographs(scene: Scene) -> tuple[tuple[Path, ...] | None, list[str]]:
    """The scene's photographs if they have the size of the maps, and a warning if one has not."""
    consequence = "images are shaded from the normal maps instead"
    for path in scene.image_files or ():
        if path.suffix.lower() == ".exr":
            return None, [f"{path}: is EXR, which nerfstudio can't read: {consequence}"]
        with Image.open(path) as image:  # reads only the header
            if image.size != (scene.width, scene.height):
                size = f"{image.size[0]}x{image.size[1]}"
                return None, [f"{path}: is {size}, the maps are {scene.width}x{scene.height}: {consequence}"]
    return scene.image_files, []


def _meta(scene: Scene, c2w: Float[np.ndarray, "n 4 4"], normals_folder: str | None) -> dict[str, Any]:
    """Contents of meta_data.json."""
    frames = []
    for name, K, pose in zip(scene.names, scene.K, c2w, strict=True):
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = K
        intrinsics[:2, 2] += 0.5  # nerfstudio's pixel centers are at +0.5
        frames.append(
            {
                "rgb_path": f"rgb/{name}.png",
                "camtoworld": pose.tolist(),
                "intrinsics": intrinsics.tolist(),
                "mono_depth_path": f"depth/{name}.npy",
                "mono_normal_path": f"normal/{name}.npy",
                "foreground_mask": f"mask/{name}.png",
            }
        )
    distances = np.linalg.norm(c2w[:, :3, 3], axis=-1)
    return {
        "camera_model": "OPENCV",
        "height": scene.height,
        "width": scene.width,
        "has_mono_prior": True,
        "has_foreground_mask": True,
        "pairs": None,
        "worldtogt": scene.world_from_unit.tolist(),
        "scene_box": {
            "aabb": [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]],
            "near": float(max(distances.min() - 1, 0.05)),
            "far": float(distances.max() + 1),
            "radius": 1.0,
            "collider_type": "near_far",
        },
        SCENE_KEY: str(scene.root.resolve()),
        NORMALS_KEY: normals_folder,
        "frames": frames,
    }
