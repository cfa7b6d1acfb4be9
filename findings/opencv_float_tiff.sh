#!/usr/bin/env bash
# A floating-point normal map that OpenCV writes as TIFF with its default settings.
#
# Guess: cv2.imwrite("n.tif", float32 image of three channels) stores the values as they are, since TIFF holds floats and
#   the same call on one channel stores them so.
# Seen: up to opencv-python-headless 4.12.0.88 (also 4.8.1.78, 4.10.0.84 and 4.11.0.86), images of three channels are
#   compressed as SGI LogLuv, which holds colors: of random unit vectors, half come back as zero (those of negative
#   luminance), most others with changed components, and all-positive images change by up to 0.014. No warning is given, and
#   the file's type is float32. One channel, and IMWRITE_TIFF_COMPRESSION = 1 (none), come back bit for bit. With 4.13.0.92
#   the default is no compression, and everything comes back bit for bit.
# Consequence: a folder of such files is damaged beyond repair, and only its compression tag (34676) tells. Save EXR, or set
#   the compression.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/write.py" <<'PYTHON'
import sys

import cv2
import numpy as np
import tifffile

compressed = sys.argv[1] == "compressed"
normals = np.random.default_rng(0).normal(size=(64, 64, 3)).astype(np.float32)
normals /= np.linalg.norm(normals, axis=2, keepdims=True)
cv2.imwrite("default.tif", normals)
cv2.imwrite("positive.tif", np.abs(normals))
cv2.imwrite("none.tif", normals, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
cv2.imwrite("one.tif", normals[..., 0])
tag = int(tifffile.TiffFile("default.tif").pages[0].compression)
back, positive, none, one = (
    cv2.imread(f"{name}.tif", cv2.IMREAD_UNCHANGED) for name in ("default", "positive", "none", "one")
)
zero = (back == 0).all(axis=2).mean()
changed = (np.abs(back - normals).max(axis=2) > 0.01).mean()
by = np.abs(positive - np.abs(normals)).max()
print(f"OpenCV {cv2.__version__}: compression {tag}, {back.dtype}; zero {zero:.0%}, changed {changed:.0%}; positive by {by:.3f}")
assert (none == normals).all() and (one == normals[..., 0]).all()
assert tag == (34676 if compressed else 1)
assert (0.4 < zero < 0.6 and changed > 0.7 and by > 0.01) if compressed else (back == normals).all()
PYTHON
cd "$folder"
for version in 4.12.0.88:compressed 4.13.0.92:plain; do
  python3 -m venv "$folder/${version%:*}"
  "$folder/${version%:*}/bin/pip" install --quiet "opencv-python-headless==${version%:*}" tifffile==2025.5.10 numpy==2.2.6
  "$folder/${version%:*}/bin/python" write.py "${version#*:}"
done
