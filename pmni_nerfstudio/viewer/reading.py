# SPDX-License-Identifier: Apache-2.0
"""What there is to be seen of a folder that one of our commands wrote, or of a mesh's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float

from pmni_nerfstudio.data.scene import MASKS, Scene, read_scene
from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.evaluation.metrics import transform_poses
from pmni_nerfstudio.evaluation.record import METRICS
from pmni_nerfstudio.evaluation.score import score
from pmni_nerfstudio.evaluation.truth import Truth, find_truth, read_mesh, read_poses, read_truth
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
    known = read_truth(truth) if truth is not None else None if scene is None else find_truth(scene)
    if outcome is not None:
        units = outcome.record["units"]
    if outcome is not None and align and truth is data is poses is None:
        record = outcome.record
        similarity = np.eye(4) if record["similarity"] is None else np.array(record["similarity"])
        known = None if record["surface"] is None else known
        figures = _measured(record)
    elif known is not None:
        similarity, figures = _measure(result, mesh, cameras, known, align, units)
    else:
        similarity, figures = np.eye(4), ()
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
    if scene.c2w is not None:
        cameras["given"] = transform_poses(scene.world_from_unit, scene.c2w)
    return cameras


def _measured(record: dict[str, Any]) -> tuple[str, ...]:
    """What `pmni eval` found, in words."""
    said = []
    if (surface := record["surface"]) is not None:
        said.append(_chamfer(surface["chamfer"], surface["chamfer_pct"], record["units"]))
    if (poses := record["poses"]) is not None:
        said.append(f"rotation {poses['rot_deg']:.3g} deg")
    if (normals := record["normals"]) is not None and normals["mae_deg"] is not None:
        said.append(f"normals {normals['mae_deg']:.3g} deg")
    return tuple(said)


def _measure(
    result: Path,
    mesh: trimesh.Trimesh,
    cameras: dict[str, Float[np.ndarray, "n 4 4"]],
    truth: Truth,
    align: bool,
    units: str,
) -> tuple[Float[np.ndarray, "4 4"], tuple[str, ...]]:
    """The similarity that lays a result onto the truth, and how far apart they are, in words.

    Raises:
        PmniError: the true cameras don't see the mesh, or are of other views.
    """
    c2w, given = cameras.get("refined"), cameras.get("given")
    if c2w is not None and len(c2w) != len(truth.c2w):
        raise PmniError(f"{result}: has {len(c2w)} views and the truth {len(truth.c2w)}: give the truth of this scene")
    # Cameras that were given and kept are in the true world already, and an error of theirs is to be seen.
    kept = c2w is not None and given is not None and np.allclose(c2w, given, rtol=1e-4, atol=1e-3)
    found = score(mesh, c2w, truth, align=align and not kept)
    if found is None:
        raise PmniError(f"{result}: none of the truth's cameras sees this mesh: give the truth of this scene")
    said = [_chamfer(found.surface.chamfer, found.surface.chamfer_pct, units)]
    if found.poses is not None:
        said.append(f"rotation {found.poses.rot_deg:.3g} deg")
    return found.similarity, tuple(said)


def _chamfer(chamfer: float, chamfer_pct: float, units: str) -> str:
    return f"Chamfer {chamfer:.4g} {units} ({chamfer_pct:.3g}%)"
