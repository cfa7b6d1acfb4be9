# SPDX-License-Identifier: Apache-2.0
"""A scene in sdfstudio's format, as nerfstudio's `sdfstudio-data` parser reads it, for its neus, neus-facto and others.

    OUT/
      meta_data.json   cameras and paths; the world is the unit sphere's
      rgb/NN.png       the scene's photographs, or its normals under one lamp; black off the object
      mask/NN.png      white on the object
      normal/NN.npy    (3, H, W) float32, (n + 1) / 2 of OpenCV camera axes (x right, y down, z forward); .5 is no normal
      depth/NN.npy     (H, W) float32, z depth up to one scale a view; 0 is unknown

Of meta_data.json, `worldtogt` leads from the unit sphere to the data's world. `pmni_scene` and `pmni_normals_folder` are
ours: they say which scene it was, so that a surface trained on it can be scored against that scene's truth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.depths import read_depths
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.geometry.transforms import orthonormalized

META = "meta_data.json"
SCENE_KEY, NORMALS_KEY = "pmni_scene", "pmni_normals_folder"

_LAMP = np.array([0.4, 0.25, 0.88]) / np.linalg.norm([0.4, 0.25, 0.88])
"""Towards the lamp, in the unit sphere's world: it stays where it is while the camera goes round."""


def write_sdfstudio(
    folder: Path,
    scene: Scene,
    c2w: Float[np.ndarray, "n 4 4"],
    normals_folder: str | None = None,
    progress: bool = True,
) -> list[str]:
    """Write a scene in sdfstudio's format, see above; meta_data.json comes last.

    Args:
        folder: that exists.
        scene: at its files' own resolution.
        c2w: camera to unit-sphere world, OpenCV axes, of all views.
        normals_folder: what the scene was read with.
        progress: show a progress bar.

    Returns:
        What is worth knowing of it, a line each.
    """
    photographs, notes = _photographs(scene)
    if scene.depth_files is None:
        notes.append(
            "no depth maps: zeros (unknown) stand in for them, since nerfstudio reads normals only beside depths; "
            "leave mono-depth-loss-mult at 0, or run `pmni integrate` first"
        )
        depths = np.zeros(scene.masks.shape, dtype=np.float32)
    else:
        depths = read_depths(scene)
    for name in ("rgb", "mask", "normal", "depth"):
        (folder / name).mkdir(exist_ok=True)
    c2w = orthonormalized(c2w)
    console = Console(stderr=True)
    for view in track(range(scene.num_views), "Converting", console=console, transient=True, disable=not progress):
        name, mask, normals = scene.names[view], scene.masks[view], scene.normals[view].astype(np.float32)
        if photographs is None:
            picture = shaded(normals @ c2w[view, :3, :3].T, mask)
        else:
            with Image.open(photographs[view]) as image:
                picture = np.where(mask[..., None], np.asarray(image.convert("RGB")), np.uint8(0))
        write_png(folder / "rgb" / f"{name}.png", picture)
        write_png(folder / "mask" / f"{name}.png", mask)
        for kind, array in (("normal", np.moveaxis(normals, -1, 0) * 0.5 + 0.5), ("depth", depths[view])):
            with atomic_path(folder / kind / f"{name}.npy") as temporary:
                np.save(temporary, array)
    with atomic_path(folder / META) as temporary:
        temporary.write_text(json.dumps(_meta(scene, c2w, normals_folder), indent=1) + "\n", encoding="utf-8")
    return notes


def shaded(normals: Float[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """A grey picture of normals in the unit sphere's world, black off the mask.

    The lamp stands still in the world and shines softly round the object (half Lambert), so that a point of the surface
    has the same grey in all views and no part of it is flat black.
    """
    grey = 30 + 210 * (0.5 + 0.5 * normals @ _LAMP)
    return np.where(mask, np.round(grey), 0).astype(np.uint8)[..., None].repeat(3, axis=-1)


def _photographs(scene: Scene) -> tuple[tuple[Path, ...] | None, list[str]]:
    """The scene's photographs if they are the views' own pixels, and why not if there are some and they aren't."""
    instead = "pictures are shaded from the normal maps instead"
    for path in scene.image_files or ():
        if path.suffix.lower() == ".exr":
            return None, [f"{path}: is EXR, which nerfstudio can't read: {instead}"]
        with Image.open(path) as image:  # reads the header only
            if image.size != (scene.width, scene.height):
                size = f"{image.size[0]}x{image.size[1]}"
                return None, [f"{path}: is {size}, the maps are {scene.width}x{scene.height}: {instead}"]
    return scene.image_files, []


def _meta(scene: Scene, c2w: Float[np.ndarray, "n 4 4"], normals_folder: str | None) -> dict[str, Any]:
    frames = []
    for name, K, pose in zip(scene.names, scene.K, c2w, strict=True):
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = K
        intrinsics[:2, 2] += 0.5  # nerfstudio counts from the pixel's corner
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
