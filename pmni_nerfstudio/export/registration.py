# SPDX-License-Identifier: Apache-2.0
"""What `pmni register` writes: poses, surface, figures, in the data's own world."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import trimesh

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.result_files import write_mesh
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.export.cameras import write_refined_cameras
from pmni_nerfstudio.geometry.mesh import keep_large_components, transformed_mesh
from pmni_nerfstudio.registration.pipeline import Registration

SURFACE = "surface.ply"
FIGURES = "registration.json"
PICTURE = "registration.png"


def write_registration(folder: Path, scene: Scene, registration: Registration) -> list[Path]:
    """Write poses.npy, cameras_refined.npz, transforms.json, surface.ply and registration.json, each atomically.

    Args:
        folder: that exists.
        scene: that was registered, all its views.
        registration: of them.
    """
    files = write_refined_cameras(folder, scene, registration.c2w)
    vertices, faces = registration.surface.mesh
    mesh = keep_large_components(trimesh.Trimesh(vertices, faces, process=False), 0.02)
    write_mesh(folder / SURFACE, transformed_mesh(mesh, scene.world_from_unit))
    with atomic_path(folder / FIGURES) as temporary:
        temporary.write_text(json.dumps(figures(scene, registration), indent=1) + "\n", encoding="utf-8")
    return [*files, folder / SURFACE, folder / FIGURES]


def figures(scene: Scene, registration: Registration) -> dict:
    """The contents of registration.json."""
    j = registration.judgement
    return {
        "cost": round(j.cost, 6),
        "pairwise_cost": registration.pairwise_cost,
        "residual_deg": {"mean": _round(j.residual_deg.mean()), "median": _round(np.median(j.median_deg))},
        "inlier_share": _round(j.inliers.mean()),
        "views": [
            {
                "name": name,
                "residual_deg": _round(j.residual_deg[i]),
                "inlier_share": _round(j.inliers[i]),
                "mask_iou": _round(j.iou[i]),
                "confidence": _round(j.confidence[i]),
                "trusted": bool(registration.trusted[i]),
            }
            for i, name in enumerate(scene.names)
        ],
        "hypotheses": [{"name": h.name, "cost": h.cost, "pruned": h.pruned} for h in registration.hypotheses],
        "warnings": list(registration.warnings),
        "seconds": {**registration.seconds, "total": _round(sum(registration.seconds.values()))},
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("pmni-nerfstudio", "numpy", "scipy", "torch", "open3d")},
        },
    }


def _round(value: float | np.floating) -> float:
    return round(float(value), 4)
