# SPDX-License-Identifier: Apache-2.0
"""Surface and input scene of a baseline's run, in the world and units of the original data."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import numpy as np
import trimesh
from jaxtyping import Float
from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.utils.io import load_from_json
from torch import Tensor

from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.sdfstudio import META, NORMALS_KEY, SCENE_KEY
from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
from pmni_nerfstudio.geometry.mesh import transformed_mesh
from pmni_nerfstudio.geometry.transforms import transform_poses


def baseline_mesh(
    pipeline: Pipeline, resolution: int = 512, max_memory: int | None = None, progress: bool = True
) -> trimesh.Trimesh:
    """Extract the surface of a run of neus, neus-facto or another model whose field has `forward_geonetwork`.

    Args:
        pipeline: Loaded pipeline with nerfstudio's `sdfstudio-data` parser.
        resolution: Number of marching cubes cells along the diameter of the unit sphere.
        max_memory: Maximum memory in bytes that an evaluation of the field may allocate; None for no limit.
        progress: Show a progress bar.

    Returns:
        Closed mesh in the world and units of the data.

    Raises:
        PmniError: The model or the data are of another kind, or there is no surface.
    """
    meta, model = _meta(pipeline), pipeline.model
    geometry = getattr(getattr(model, "field", None), "forward_geonetwork", None)
    if geometry is None:
        raise PmniError(f"{type(model).__name__}: has no signed distance field; export its surface with ns-export")

    def sdf(points: Tensor) -> Tensor:
        return geometry(points)[:, 0]

    mesh = extract_mesh(sdf, resolution, device=model.device, max_memory=max_memory, progress=progress)
    return transformed_mesh(mesh, np.array(meta["worldtogt"]) @ np.linalg.inv(_orientation(pipeline)))


def baseline_scene(pipeline: Pipeline) -> Tuple[Scene, Float[np.ndarray, "n 4 4"]]:
    """Scene that the data of a run were converted from, and the poses of the conversion.

    Args:
        pipeline: Loaded pipeline, as for `baseline_mesh`.

    Returns:
        Scene, and the camera-to-world poses of its views in the world of the data, OpenCV axes.

    Raises:
        PmniError: The data are of another kind, or the scene no longer exists.
    """
    meta = _meta(pipeline)
    c2w = np.array([frame["camtoworld"] for frame in meta["frames"]])
    return read_scene(meta[SCENE_KEY], meta[NORMALS_KEY]), transform_poses(np.array(meta["worldtogt"]), c2w)


def _meta(pipeline: Pipeline) -> Dict[str, Any]:
    path = pipeline.datamanager.get_datapath() / META
    if not path.is_file():
        raise PmniError(
            f"{path}: does not exist; only runs on data from `pmni convert` can be traced back to their scene"
        )
    meta = load_from_json(path)
    if not {SCENE_KEY, NORMALS_KEY, "worldtogt"} <= meta.keys():
        raise PmniError(f"{path}: does not name the scene it was converted from; write it with `pmni convert`")
    return meta


def _orientation(pipeline: Pipeline) -> Float[np.ndarray, "4 4"]:
    """Transform that the data parser applied to the unit-sphere world before training (not identity with auto-orient)."""
    transform = np.eye(4)
    applied = getattr(pipeline.datamanager.train_dataset, "metadata", {}).get("transform")
    if applied is not None:
        transform[:3] = applied.double().numpy()
    return transform
