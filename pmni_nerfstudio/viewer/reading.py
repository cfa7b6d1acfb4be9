# SPDX-License-Identifier: Apache-2.0
"""What there is to be seen of a folder that one of our commands wrote, or of a mesh's file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float

from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.data.scene import MASKS, Scene, read_scene
from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.evaluation.ground_truth import Truth, are_given, find_truth, given_poses, read_truth
from pmni_nerfstudio.evaluation.record import METRICS
from pmni_nerfstudio.evaluation.score import Scores, score
from pmni_nerfstudio.export.cameras import CAMERAS, POSES, TRANSFORMS
from pmni_nerfstudio.export.registration import SURFACE
from pmni_nerfstudio.report.outcome import read_outcome
from pmni_nerfstudio.viewer.subject import Subject

MESHES = (*(f"mesh.{suffix}" for suffix in ("ply", "obj", "stl", "glb")), SURFACE)
"""Names under which a folder may hold its mesh: of `pmni eval` and `pmni export`, and of `pmni register`."""


def read_subject(
    result: Path,
    *,
    data: Path | None = None,
    normals_folder: str | None = None,
    poses: Path | None = None,
    truth: Path | None = None,
    align: bool = True,
    units: str = "units",
) -> Subject:
    """Read it; what `pmni eval` found is kept, anything else is laid onto the truth and measured now.

    Args:
        result: a folder that `pmni eval`, `export` or `register` wrote, or the file of a mesh.
        data: the scene's folder; by default the one that the folder names, if it still is where it was.
        normals_folder: of the scene, where it has several.
        poses: file of the mesh's cameras; by default those beside it.
        truth: folder of the truth; by default what the scene's folder knows of it.
        align: lay the result onto the truth by a similarity before it is measured, unless its cameras are the given ones.
        units: of the data's world; what `pmni eval` wrote has its own.

    Raises:
        PmniError: a file is missing or broken, or they don't belong together.
    """
    folder = result if result.is_dir() else result.parent
    outcome = read_outcome(folder) if result.is_dir() and (folder / METRICS).is_file() else None
    mesh = read_mesh(_mesh_file(result))
    if data is not None:
        scene = read_scene(data, normals_folder)
    else:
        scene = outcome.scene if outcome is not None else _named_scene(result, normals_folder)
    cameras = _cameras(folder, poses, scene)
    record = {} if outcome is None else outcome.record
    units = record.get("units", units)
    is_kept = outcome is not None and align and truth is data is poses is None
    known = None
    if truth is not None:
        known = read_truth(truth)
    elif scene is not None and not (is_kept and record["surface"] is None):
        known = find_truth(scene)
    similarity, figures = np.eye(4), ()
    if is_kept:
        figures = _in_words(record["surface"], record["poses"], record["normals"], units)
        if record["similarity"] is not None:
            similarity = np.array(record["similarity"])
    elif known is not None:
        found = _measured(result, mesh, cameras.get("refined"), scene, known, align)
        similarity, poses_score = found.similarity, None if found.poses is None else asdict(found.poses)
        figures = _in_words(asdict(found.surface), poses_score, None, units)
    return Subject(
        title=outcome.title if outcome is not None else result.name,
        mesh=mesh,
        scene=scene,
        cameras=cameras,
        truth=None if known is None else known.world_mesh,
        truth_from_data=similarity,
        figures=figures,
        units=units,
    )


def _mesh_file(result: Path) -> Path:
    if not result.is_dir():
        return result
    for name in MESHES:
        if (result / name).is_file():
            return result / name
    raise PmniError(
        f"{result}: holds no mesh: give a folder that pmni eval, export or register wrote, or a mesh's file"
    )


def _named_scene(result: Path, normals_folder: str | None) -> Scene | None:
    """The scene by the paths of its masks in the transforms.json of a folder of ours, if it still is there.

    Raises:
        PmniError: the file is broken, or the scene is.
    """
    transforms = result / TRANSFORMS
    if not transforms.is_file():
        return None
    try:
        mask = result / json.loads(transforms.read_text(encoding="utf-8"))["frames"][0]["mask_path"]
        mask = mask.resolve()
        is_there = mask.is_file()
    except (OSError, ValueError, RecursionError, TypeError, KeyError, IndexError) as error:
        raise PmniError(f"{transforms}: can't be read ({one_line(error)}): export again, or give --data") from error
    return read_scene(mask.parent.parent, normals_folder) if is_there and mask.parent.name == MASKS else None


def _cameras(folder: Path, poses: Path | None, scene: Scene | None) -> dict[str, Float[np.ndarray, "n 4 4"]]:
    if scene is None:
        if poses is not None:
            raise PmniError(f"{poses}: cameras of which views? Give --data DIR too")
        return {}
    cameras = {}
    beside = (folder / name for name in (POSES, CAMERAS))
    file = poses or next((path for path in beside if path.is_file()), None)
    if file is not None:
        cameras["refined"] = read_poses(file, scene.num_views)
    if (given := given_poses(scene)) is not None:
        cameras["given"] = given
    return cameras


def _measured(
    result: Path,
    mesh: trimesh.Trimesh,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    scene: Scene | None,
    truth: Truth,
    align: bool,
) -> Scores:
    """How far a result is from the truth once it is laid onto it.

    Raises:
        PmniError: the true cameras don't see the mesh, or are of other views.
    """
    if c2w is not None and len(c2w) != len(truth.c2w):
        raise PmniError(f"{result}: has {len(c2w)} views and the truth {len(truth.c2w)}: give the truth of this scene")
    # Cameras that were given and kept are in the true world already, and an error of theirs is to be seen.
    kept = c2w is not None and scene is not None and are_given(c2w, scene)
    found = score(mesh, c2w, truth, align=align and not kept)
    if found is None:
        raise PmniError(f"{result}: none of the truth's cameras sees this mesh: give the truth of this scene")
    return found


def _in_words(
    surface: dict[str, Any] | None, poses: dict[str, Any] | None, normals: dict[str, Any] | None, units: str
) -> tuple[str, ...]:
    """Measures as a record has them."""
    said = []
    if surface is not None:
        said.append(f"Chamfer {surface['chamfer']:.4g} {units} ({surface['chamfer_pct']:.3g}%)")
    if poses is not None:
        said.append(f"rotation {poses['rot_deg']:.3g} deg")
    if normals is not None and normals["mae_deg"] is not None:
        said.append(f"normals {normals['mae_deg']:.3g} deg")
    return tuple(said)
