# SPDX-License-Identifier: Apache-2.0
"""Files of a registration result, in the data world: camera poses, surface mesh and statistics."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import trimesh

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.result_files import write_mesh
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.export.cameras import write_result_cameras
from pmni_nerfstudio.geometry.mesh import keep_large_components, transformed_mesh
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.registration.pipeline import Registration

SURFACE = "surface.ply"
STATISTICS = "registration.json"
PICTURE = "registration.png"


def write_registration(folder: Path, scene: Scene, registration: Registration) -> list[Path]:
    """Write poses.npy, cameras_refined.npz, transforms.json, surface.ply and registration.json, each atomically.

    Args:
        folder: existing output folder.
        scene: scene that was registered.
        registration: result for all views of the scene, in the unit-sphere world.

    Returns:
        The files written.
    """
    files = write_result_cameras(folder, scene, transform_poses(scene.world_from_unit, registration.c2w))
    vertices, faces = registration.surface.mesh
    mesh = keep_large_components(trimesh.Trimesh(vertices, faces, process=False), 0.02)
    write_mesh(folder / SURFACE, transformed_mesh(mesh, scene.world_from_unit))
    write_json(folder / STATISTICS, _statistics(scene, registration))
    return [*files, folder / SURFACE, folder / STATISTICS]


def _statistics(scene: Scene, registration: Registration) -> dict:
    """Contents of registration.json."""
    j = registration.agreement
    return {
        "verdict": registration.verdict.name,
        "reasons": list(registration.verdict.reasons),
        "intrinsics": registration.intrinsics.statistics(scene.K),
        "cost": round(j.cost, 6),
        "pairwise_cost": registration.pairwise_cost,
        "residual_deg": {"mean": _round(j.residual_deg.mean()), "median": _round(np.median(j.median_deg))},
        "inlier_share": _round(j.inlier_ratio.mean()),
        "views": [
            {
                "name": name,
                "residual_deg": _round(j.residual_deg[i]),
                "inlier_share": _round(j.inlier_ratio[i]),
                "mask_iou": _round(j.iou[i]),
                "confidence": _round(j.confidence[i]),
                "status": view.status,
                "reason": view.reason,
            }
            for i, (name, view) in enumerate(zip(scene.names, registration.verdict.views))
        ],
        "start": registration.start,
        "hypotheses": [{"name": h.name, "cost": h.cost, "pruned": h.pruned} for h in registration.hypotheses],
        "seconds": {**registration.seconds, "total": _round(sum(registration.seconds.values()))},
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("pmni-nerfstudio", "numpy", "scipy", "torch", "open3d")},
        },
    }


def _round(value: float | np.floating) -> float:
    return round(float(value), 4)
