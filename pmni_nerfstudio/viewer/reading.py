# SPDX-License-Identifier: Apache-2.0
"""What there is to be seen of a folder that one of our commands wrote, or of a mesh's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from pmni_nerfstudio.report.outcome import Outcome, read_outcome
from pmni_nerfstudio.viewer.subject import Subject

if TYPE_CHECKING:
    from pmni_nerfstudio.viewer.view_command import ViewCommand

MESHES = (*(f"mesh.{suffix}" for suffix in ("ply", "obj", "stl", "glb")), SURFACE)
"""Names under which a folder may hold its mesh: of `pmni eval` and `pmni export`, and of `pmni register`."""


def read_subject(wanted: ViewCommand) -> Subject:
    """Read it; what `pmni eval` found is kept, anything else is laid onto the truth and measured now.

    Raises:
        PmniError: a file is missing or broken, or they don't belong together.
    """
    folder = wanted.result if wanted.result.is_dir() else wanted.result.parent
    outcome = read_outcome(folder) if wanted.result.is_dir() and (folder / METRICS).is_file() else None
    mesh = read_mesh(_mesh_file(wanted.result))
    scene = _scene(wanted, folder, outcome)
    cameras = _cameras(wanted, folder, scene)
    truth = _truth(wanted, scene)
    remeasured = (wanted.truth, wanted.data, wanted.poses) != (None, None, None) or not wanted.align
    if outcome is not None and not remeasured:
        record = outcome.record
        similarity = np.eye(4) if record["similarity"] is None else np.array(record["similarity"])
        if record["surface"] is None:
            truth = None
        figures, units = _measured(record), record["units"]
    else:
        units = wanted.units if outcome is None else outcome.record["units"]
        similarity, figures = (np.eye(4), ()) if truth is None else _measure(mesh, cameras, truth, wanted, units)
    return Subject(
        title=outcome.title if outcome is not None else wanted.result.name,
        mesh=mesh,
        scene=scene,
        cameras=cameras,
        truth=None if truth is None else truth.world_mesh,
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


def _scene(wanted: ViewCommand, folder: Path, outcome: Outcome | None) -> Scene | None:
    if wanted.data is not None:
        return read_scene(wanted.data, wanted.normals_folder)
    if outcome is not None:
        return outcome.scene
    if not wanted.result.is_dir():
        return None
    root = _named_scene(folder / TRANSFORMS)
    return None if root is None else read_scene(root, wanted.normals_folder)


def _named_scene(transforms: Path) -> Path | None:
    """The scene's folder by the paths of its masks in a transforms.json of ours, if it still is there.

    Raises:
        PmniError: the file is broken.
    """
    if not transforms.is_file():
        return None
    try:
        mask = transforms.parent / json.loads(transforms.read_text(encoding="utf-8"))["frames"][0]["mask_path"]
    except (ValueError, RecursionError, TypeError, KeyError, IndexError) as error:
        raise PmniError(f"{transforms}: can't be read ({one_line(error)}): export again, or give --data") from error
    root = mask.resolve().parent.parent
    return root if mask.is_file() and mask.resolve().parent.name == MASKS else None


def _cameras(wanted: ViewCommand, folder: Path, scene: Scene | None) -> dict[str, Float[np.ndarray, "n 4 4"]]:
    if scene is None:
        if wanted.poses is not None:
            raise PmniError(f"{wanted.poses}: cameras of which views? Give --data DIR too")
        return {}
    cameras = {}
    beside = (folder / name for name in (POSES, CAMERAS))
    file = wanted.poses or next((path for path in beside if path.is_file()), None)
    if file is not None:
        cameras["refined"] = read_poses(file, scene.num_views)
    if scene.c2w is not None:
        cameras["given"] = transform_poses(scene.world_from_unit, scene.c2w)
    return cameras


def _truth(wanted: ViewCommand, scene: Scene | None) -> Truth | None:
    if wanted.truth is not None:
        return read_truth(wanted.truth)
    return None if scene is None else find_truth(scene)


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
    mesh: trimesh.Trimesh,
    cameras: dict[str, Float[np.ndarray, "n 4 4"]],
    truth: Truth,
    wanted: ViewCommand,
    units: str,
) -> tuple[Float[np.ndarray, "4 4"], tuple[str, ...]]:
    """The similarity that lays a result onto the truth, and how far apart they are, in words.

    Raises:
        PmniError: the true cameras don't see the mesh, or are of other views.
    """
    c2w, given = cameras.get("refined"), cameras.get("given")
    if c2w is not None and len(c2w) != len(truth.c2w):
        raise PmniError(
            f"{wanted.result}: has {len(c2w)} views and the truth {len(truth.c2w)}: give the truth of this scene"
        )
    # Cameras that were given and kept are in the true world already, and an error of theirs is to be seen.
    kept = c2w is not None and given is not None and np.allclose(c2w, given, rtol=1e-4, atol=1e-3)
    found = score(mesh, c2w, truth, align=wanted.align and not kept)
    if found is None:
        raise PmniError(f"{wanted.result}: none of the truth's cameras sees this mesh: give the truth of this scene")
    said = [_chamfer(found.surface.chamfer, found.surface.chamfer_pct, units)]
    if found.poses is not None:
        said.append(f"rotation {found.poses.rot_deg:.3g} deg")
    return found.similarity, tuple(said)


def _chamfer(chamfer: float, chamfer_pct: float, units: str) -> str:
    return f"Chamfer {chamfer:.4g} {units} ({chamfer_pct:.3g}%)"
