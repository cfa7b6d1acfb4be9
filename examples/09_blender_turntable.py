# SPDX-License-Identifier: Apache-2.0
"""Render normal maps of all meshes of a Blender file from cameras around them, with their poses.

    blender -b FILE.blend -P examples/09_blender_turntable.py -- SRC --views 20 --size 640x512
    pmni prepare SRC DIR --normals-from blender

Runs inside Blender (4.2 or later), or in a Python that has the bpy package, without this package. Writes the Normal pass as
SRC/normal/NNN.exr, in the axes of Blender's world, and SRC/transforms.json. Lights and materials do not matter.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import bpy  # pyright: ignore[reportMissingImports]
from mathutils import Vector  # pyright: ignore[reportMissingImports]

FRAMED = 0.9
"""Part of the picture's shorter side that the bounding sphere of the objects fills."""


def main() -> None:
    """Read the options after "--" and render all views."""
    words = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]
    parser = argparse.ArgumentParser(prog="09_blender_turntable.py", description="Normal maps of a turntable.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--views", type=int, default=20, help="number of cameras")
    parser.add_argument("--size", default="640x512", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--elevations", type=float, nargs="+", default=[15.0, 40.0], help="degrees, taken in turn")
    parser.add_argument("--lens", type=float, default=85.0, help="focal length in mm for a sensor of 36 mm")
    parser.add_argument("--samples", type=int, default=64, help="rays per pixel, which smooth the contours")
    options = parser.parse_args(words)
    width, height = (int(side) for side in options.size.split("x"))
    scene = bpy.context.scene
    set_up(scene, width, height, options.samples)
    camera = bpy.data.objects.new("turntable", bpy.data.cameras.new("turntable"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    # By default, lens and angle belong to the longer side of the picture.
    camera.data.sensor_fit, camera.data.sensor_width, camera.data.lens = "HORIZONTAL", 36.0, options.lens
    focal_px = options.lens / 36.0 * width
    center, radius = bounding_sphere(scene)
    distance = radius / math.sin(math.atan(FRAMED * min(width, height) / 2 / focal_px))
    camera.data.clip_start, camera.data.clip_end = distance / 100, distance * 10

    frames = []
    for view in range(options.views):
        azimuth = 2 * math.pi * view / options.views
        elevation = math.radians(options.elevations[view % len(options.elevations)])
        direction = Vector(
            (math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation))
        )
        camera.location = center + distance * direction
        camera.rotation_euler = (-direction).to_track_quat("-Z", "Y").to_euler()
        bpy.context.view_layer.update()
        scene.render.filepath = str((options.out / "normal" / f"{view:03d}.exr").absolute())
        bpy.ops.render.render(write_still=True)
        matrix = [list(row) for row in camera.matrix_world]
        frames.append({"file_path": f"normal/{view:03d}.exr", "transform_matrix": matrix})
    cameras = {"camera_model": "OPENCV", "w": width, "h": height, "cx": width / 2, "cy": height / 2}
    cameras |= {"fl_x": focal_px, "fl_y": focal_px, "frames": frames}
    (options.out / "transforms.json").write_text(json.dumps(cameras, indent=1))


def set_up(scene: bpy.types.Scene, width: int, height: int, samples: int) -> None:
    """Settings of the picture: the Normal pass of all layers in one EXR file, with single precision."""
    render = scene.render
    render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.use_adaptive_sampling = samples, False, False
    render.resolution_x, render.resolution_y, render.resolution_percentage = width, height, 100
    render.pixel_aspect_x = render.pixel_aspect_y = 1.0
    render.use_border = render.use_motion_blur = False
    bpy.context.view_layer.use_pass_normal = True
    settings = render.image_settings
    if hasattr(settings, "media_type"):  # since Blender 5.0
        settings.media_type = "MULTI_LAYER_IMAGE"
    settings.file_format, settings.color_depth = "OPEN_EXR_MULTILAYER", "32"


def bounding_sphere(scene: bpy.types.Scene) -> tuple[Vector, float]:
    """Center and radius of a sphere around all meshes that are rendered, with their modifiers."""
    graph, points = bpy.context.evaluated_depsgraph_get(), []
    for item in scene.objects:
        if item.type == "MESH" and not item.hide_render:
            evaluated = item.evaluated_get(graph)
            points += [item.matrix_world @ vertex.co for vertex in evaluated.to_mesh().vertices]
            evaluated.to_mesh_clear()
    if not points:
        raise SystemExit("error: the file has no mesh; open one, as in: blender -b FILE.blend -P …")
    low, high = (Vector([pick(point[axis] for point in points) for axis in range(3)]) for pick in (min, max))
    center = (low + high) / 2
    return center, max((point - center).length for point in points)


if __name__ == "__main__":
    main()
