#!/usr/bin/env bash
# A normal map that pycolmap writes from an array, as COLMAP's own code reads it.
#
# Guess: NormalMap.from_array and NormalMap.to_array convert between (height, width, 3) and COLMAP's layout, in which the
#   three components are planes one after another (src/colmap/mvs/mat.h), so that a map which is written from an array is
#   the same map for COLMAP, and an array read from a file of patch_match_stereo is indexed by row and column.
# Seen: with pycolmap 4.2.1 both copy the memory as it is. The file holds x, y, z of each pixel in turn, and to_bitmap, which
#   goes through COLMAP's own indexing, shows other normals: of a map with one normal in its left half and another in its
#   right half, the first row has five colors, and none of its six pixels has a color of either normal.
#   from_array and to_array undo each other, so that no round trip tells.
# Consequence: arrays from to_array have to be reshaped to (3, height, width) first; do not write maps with from_array.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/write.py" <<'PYTHON'
from pathlib import Path

import numpy as np
import pycolmap

left, right = (0.0, 0.0, -1.0), (0.6, 0.0, -0.8)
normals = np.empty((4, 6, 3), np.float32)
normals[:, :3], normals[:, 3:] = left, right
stored = pycolmap.NormalMap.from_array(normals)
stored.write("map.bin")
body = np.frombuffer(Path("map.bin").read_bytes()[len(b"6&4&3&") :], "<f4")
planar = np.array_equal(body.reshape(3, 4, 6), np.moveaxis(normals, -1, 0))
interleaved = np.array_equal(body.reshape(4, 6, 3), normals)
row = [tuple(color) for color in stored.to_bitmap().to_array()[0].tolist()]


def alone(normal):
    """Color of a map that holds a single pixel, which has the same bytes in both layouts."""
    one = pycolmap.NormalMap.from_array(np.array(normal, np.float32).reshape(1, 1, 3))
    return tuple(one.to_bitmap().to_array()[0, 0].tolist())


expected = [alone(left)] * 3 + [alone(right)] * 3
print(f"pycolmap {pycolmap.__version__}: planar {planar}, interleaved {interleaved}")
print(f"first row expected {expected}\nfirst row shown    {row}; {len(set(row))} colors")
assert interleaved and not planar
assert np.array_equal(stored.to_array(), normals)
assert len(set(expected)) == 2 and len(set(row)) == 5
assert not set(row) & set(expected)
PYTHON
cd "$folder"
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pycolmap==4.2.1 numpy==2.2.6
"$folder/env/bin/python" write.py
