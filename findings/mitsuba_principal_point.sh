#!/usr/bin/env bash
# Which way Mitsuba's principal_point_offset_x and _y move the picture.
#
# Guess: by their names they are the offset of the principal point from the center of the film, as a fraction of its size, so
#   that 0.1 moves the principal point, and with it an object on the optical axis, to the right by a tenth of the width, and
#   0.1 in y down by a tenth of the height.
# Seen: with Mitsuba 3.9.1, a small ball on the optical axis moves left by a tenth of the width and up by a tenth of the
#   height. In pixels from the picture's upper left corner, cx = (1/2 - offset_x) width and cy = (1/2 - offset_y) height.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/render.py" <<'PYTHON'
import mitsuba as mi
import numpy as np

mi.set_variant("scalar_rgb")
WIDTH, HEIGHT = 200, 100


def center_of_ball(x, y):
    """Mean column and row, in pixels from the upper left corner, of a ball on the optical axis."""
    scene = mi.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "direct"},
            "sensor": {
                "type": "perspective",
                "fov": 40,
                "principal_point_offset_x": x,
                "principal_point_offset_y": y,
                "to_world": mi.ScalarTransform4f().look_at(origin=[0, 0, 10], target=[0, 0, 0], up=[0, 1, 0]),
                "film": {"type": "hdrfilm", "width": WIDTH, "height": HEIGHT, "rfilter": {"type": "box"}},
                "sampler": {"type": "independent", "sample_count": 4},
            },
            "ball": {"type": "sphere", "radius": 0.3, "emitter": {"type": "area", "radiance": 1.0}},
        }
    )
    rows, columns = np.nonzero(np.array(mi.render(scene))[..., 0] > 0.5)
    return columns.mean() + 0.5, rows.mean() + 0.5


for offset in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (-0.2, 0.15)):
    x, y = center_of_ball(*offset)
    print(f"Mitsuba {mi.__version__}: offset {offset}: ball at x {x:.2f} of {WIDTH}, y {y:.2f} of {HEIGHT}")
    assert abs(x - (0.5 - offset[0]) * WIDTH) < 0.7 and abs(y - (0.5 - offset[1]) * HEIGHT) < 0.7
PYTHON
cd "$folder"
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet mitsuba==3.9.1 numpy==2.2.6
"$folder/env/bin/python" render.py
