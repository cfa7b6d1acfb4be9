# SPDX-License-Identifier: Apache-2.0
"""Render an exported field by sphere tracing, with numpy and onnxruntime alone.

    pmni export --load-config CONFIG --output-dir OUT --format onnx
    python examples/10_onnx_sphere_tracing.py OUT/field.onnx picture.png

Needs neither this package nor PyTorch. The picture shows the surface seen along the data's y axis, z up, colored by the
surface normal; pixels without surface are white.
"""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import onnxruntime


def main(model: Path, picture: Path, /, size: int = 256) -> None:
    """Trace one ray per pixel of a size x size picture."""
    field = onnxruntime.InferenceSession(model)
    facts = field.get_modelmeta().custom_metadata_map
    center, radius = np.array(json.loads(facts["sphere_center"])), json.loads(facts["sphere_radius"])
    # Parallel rays that start on the sphere: pixel centers u, v in [-1, 1], and the depth of the sphere's front.
    u, v = (axis.ravel() for axis in np.meshgrid(*[(np.arange(size) + 0.5) / size * 2 - 1] * 2))
    inside = u**2 + v**2 < 1
    depth = np.sqrt(np.clip(1 - u**2 - v**2, 0, None))
    points = (center + radius * np.stack([u, -depth, -v], axis=1)).astype(np.float32)
    moving, traveled = np.flatnonzero(inside), np.zeros(len(points))
    for _ in range(200):
        distance = np.asarray(field.run(["distance"], {"points": points[moving]})[0])
        step = 0.9 * distance  # the field is close to a distance, but may exceed it
        points[moving, 1] += step
        traveled[moving] += step
        moving = moving[(np.abs(distance) > 1e-4 * radius) & (traveled[moving] < 2 * depth[moving] * radius)]
    hit = inside & (traveled < 2 * depth * radius)
    gradient = np.asarray(field.run(["gradient"], {"points": points[hit]})[0])
    colors = np.full((size * size, 3), 255, dtype=np.uint8)
    colors[hit] = 127.5 + 127.5 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    picture.write_bytes(png(colors.reshape(size, size, 3)))
    print(f"{hit.sum()} of {size * size} pixels show the surface; lengths are in {facts['units']}")


def png(colors: np.ndarray) -> bytes:
    """Encode colors (H, W, 3) uint8 as a PNG file."""
    rows = b"".join(b"\0" + row.tobytes() for row in colors)
    header = struct.pack(">IIBBBBB", colors.shape[1], colors.shape[0], 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} field.onnx picture.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
