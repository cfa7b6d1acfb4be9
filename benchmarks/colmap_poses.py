# SPDX-License-Identifier: Apache-2.0
"""Camera poses of pictures by COLMAP's incremental structure from motion; started by bench_poses.py.

    PYTHON benchmarks/colmap_poses.py FOLDER

It imports only NumPy and pycolmap, so that PYTHON needs no other package; a process that imports both pycolmap 4.2 and
Open3D 0.19 aborts. FOLDER has pictures in image/NAME.png, masks in mask/NAME.png.png (COLMAP's naming) and camera.json
with fx, fy, cx, cy in pixels, pixel centers at halves. The poses of the registered pictures go to poses.json:
camera-to-world matrices, OpenCV axes, by name.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
MAX_SECONDS = 120
"""Time limit of the mapper, which looks at it only between two steps; its models up to then count."""


def extract_and_match(colmap: Any, folder: Path, database: Path) -> None:
    """Find SIFT features within the masks, and match all pairs of pictures.

    Defaults are changed in favor of smooth, enlarged pictures: a lower contrast threshold, affine shapes of the features,
    and matches guided by the epipolar geometry. Of eight combinations tried on two scenes, these settings had the most
    right views; with all defaults, COLMAP registered two views at most. The check for watermarks is meant for photographs.
    """
    camera = json.loads((folder / "camera.json").read_text())
    reader = colmap.ImageReaderOptions()
    reader.camera_model = "PINHOLE"
    reader.camera_params = ",".join(str(camera[name]) for name in ("fx", "fy", "cx", "cy"))
    reader.mask_path = str(folder / "mask")
    extraction = colmap.FeatureExtractionOptions()
    extraction.sift.peak_threshold = 0.002
    extraction.sift.estimate_affine_shape = True
    colmap.extract_features(
        database,
        folder / "image",
        camera_mode=colmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
    )
    matching = colmap.FeatureMatchingOptions()
    matching.guided_matching = True
    verification = colmap.TwoViewGeometryOptions()
    verification.detect_watermark = False
    verification.ransac.random_seed = SEED
    colmap.match_exhaustive(database, matching_options=matching, verification_options=verification)


def reconstruct(colmap: Any, folder: Path, database: Path) -> dict[str, list]:
    """Camera-to-world poses by name of the reconstruction with the most pictures; empty if there is none."""
    options = colmap.IncrementalPipelineOptions()
    options.random_seed = SEED
    options.ba_refine_focal_length = options.ba_refine_extra_params = False
    options.min_model_size = 3
    # On the bracket, shaded, the step that registers a view without 3D points can take a minute, and is tried often.
    options.max_runtime_seconds = MAX_SECONDS
    # Smooth pictures have few matches: lower than the defaults of 100, 16 deg and 30.
    options.mapper.init_min_num_inliers = 30
    options.mapper.init_min_tri_angle = 4.0
    options.mapper.abs_pose_min_num_inliers = 15
    options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = False
    sparse = folder / "sparse"
    sparse.mkdir(exist_ok=True)
    models = colmap.incremental_mapping(database, folder / "image", sparse, options)
    poses = [_poses(model) for model in models.values()]
    return max(poses, key=len, default={})


def _poses(model: Any) -> dict[str, list]:
    out = {}
    for image in model.images.values():
        if image.has_pose:
            w2c = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
            out[Path(image.name).stem] = np.linalg.inv(w2c).tolist()
    return out


def main() -> None:
    """Reconstruct the pictures of the folder in the command line."""
    pycolmap = importlib.import_module("pycolmap")  # by name: it is not a dependency that a type checker could find
    folder = Path(sys.argv[1])
    database = folder / "database.db"
    extract_and_match(pycolmap, folder, database)
    (folder / "poses.json").write_text(json.dumps(reconstruct(pycolmap, folder, database)))


if __name__ == "__main__":
    main()
