# SPDX-License-Identifier: Apache-2.0
"""What nerfstudio's own surface models learnt of a converted scene, in that scene's world and units."""

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


def stock_mesh(
    pipeline: Pipeline,
    resolution: int = 512,
    keep_components: float = 0.02,
    max_memory: int | None = None,
    progress: bool = True,
) -> trimesh.Trimesh:
    """The surface of a run of neus, neus-facto or any other model whose field has `forward_geonetwork`.

    Args:
        pipeline: loaded, with nerfstudio's `sdfstudio-data` parser.
        resolution: cells of marching cubes along the diameter of the scene's sphere.
        keep_components: pieces with less than this share of the largest one's area are dropped; 0 keeps all.
        max_memory: bytes that a call of the field may take, beside what is loaded; None: no bound.
        progress: show a progress bar.

    Returns:
        A closed mesh in the data's own world and units.

    Raises:
        PmniError: another kind of model or data, or there is no surface.
    """
    meta, model = _meta(pipeline), pipeline.model
    geometry = getattr(getattr(model, "field", None), "forward_geonetwork", None)
    if geometry is None:
        raise PmniError(f"{type(model).__name__}: has no signed distance: use ns-export for its surface")

    def sdf(points: Tensor) -> Tensor:
        return geometry(points)[:, 0]

    mesh = extract_mesh(
        sdf,
        resolution,
        device=model.device,
        max_memory=max_memory,
        keep_components=keep_components,
        progress=progress,
    )
    return transformed_mesh(mesh, np.array(meta["worldtogt"]) @ np.linalg.inv(_orientation(pipeline)))


def stock_scene(pipeline: Pipeline) -> Tuple[Scene, Float[np.ndarray, "n 4 4"]]:
    """The scene that a run's data were converted from, and the poses that the run was given.

    Args:
        pipeline: as for `stock_mesh`.

    Returns:
        The scene, and its views' poses, camera to the data's own world, OpenCV axes.

    Raises:
        PmniError: other data, or the scene isn't there any more.
    """
    meta = _meta(pipeline)
    c2w = np.array([frame["camtoworld"] for frame in meta["frames"]])
    return read_scene(meta[SCENE_KEY], meta[NORMALS_KEY]), transform_poses(np.array(meta["worldtogt"]), c2w)


def _meta(pipeline: Pipeline) -> Dict[str, Any]:
    path = pipeline.datamanager.get_datapath() / META
    if not path.is_file():
        raise PmniError(f"{path}: does not exist: only runs on data of `pmni convert` can be taken back to their scene")
    meta = load_from_json(path)
    if not {SCENE_KEY, NORMALS_KEY, "worldtogt"} <= meta.keys():
        raise PmniError(f"{path}: doesn't say which scene it is of: write it with `pmni convert`")
    return meta


def _orientation(pipeline: Pipeline) -> Float[np.ndarray, "4 4"]:
    """What the parser did to the unit sphere's world before training: with auto-orient, it turned it."""
    transform = np.eye(4)
    turned = getattr(pipeline.datamanager.train_dataset, "metadata", {}).get("transform")
    if turned is not None:
        transform[:3] = turned.double().numpy()
    return transform
