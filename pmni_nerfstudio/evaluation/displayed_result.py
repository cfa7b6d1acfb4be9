# SPDX-License-Identifier: Apache-2.0
"""A result prepared for display: mesh and cameras, and the mesh's errors at its vertices."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from jaxtyping import Float

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.geometry_scores import GeometryScores, score_geometry
from pmni_nerfstudio.evaluation.ground_truth import (
    GroundTruth,
    find_ground_truth,
    poses_are_given,
    read_ground_truth,
)
from pmni_nerfstudio.evaluation.metrics import object_radius
from pmni_nerfstudio.evaluation.stored_result import StoredResult, read_result
from pmni_nerfstudio.geometry.interpolation import lookup
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.geometry.normals import angular_error_deg
from pmni_nerfstudio.geometry.ray_casting import RayCaster, camera_normals
from pmni_nerfstudio.geometry.transforms import transform_points
from pmni_nerfstudio.geometry.visibility import depth_tolerance, seen_points

MAX_FACES = 500_000
"""Maximum number of displayed faces; larger meshes are simplified."""


@dataclass(frozen=True, eq=False)
class DisplayedResult:
    """A result to display, in the data's world and units. Errors are computed on first access."""

    title: str
    mesh: trimesh.Trimesh
    scene: Scene | None = None
    cameras: dict[str, Float[np.ndarray, "n 4 4"]] = field(default_factory=dict)
    """Named sets of camera-to-world poses, OpenCV axes; the first set belongs to the mesh."""
    truth: trimesh.Trimesh | None = None
    """Ground-truth mesh."""
    truth_from_data: Float[np.ndarray, "4 4"] = field(default_factory=lambda: np.eye(4))
    """Similarity that aligns the result to the ground truth."""
    metrics: tuple[str, ...] = ()
    """Main metrics, formatted."""
    units: str = "units"
    """Name of the data's units."""

    @property
    def has_cameras(self) -> bool:
        """Whether the normals of the views can be compared with the mesh."""
        return self.scene is not None and self.mesh_cameras is not None

    @property
    def mesh_cameras(self) -> Float[np.ndarray, "n 4 4"] | None:
        """Poses that belong to the mesh, or None."""
        return next(iter(self.cameras.values()), None)

    @cached_property
    def shown_mesh(self) -> trimesh.Trimesh:
        """Mesh simplified for display."""
        return simplify(self.mesh, MAX_FACES)

    @cached_property
    def rays(self) -> RayCaster:
        """Ray caster of the displayed mesh."""
        return RayCaster(self.shown_mesh)

    @cached_property
    def bounding_sphere(self) -> tuple[Float[np.ndarray, "3"], float]:
        """Center and radius of the displayed mesh."""
        return self.shown_mesh.bounds.mean(axis=0), object_radius(self.shown_mesh)

    @cached_property
    def truth_distances(self) -> Float[np.ndarray, "v"]:
        """Distance from each displayed vertex to the ground-truth surface, in the data's units.

        Raises:
            ValueError: There is no ground truth.
        """
        if self.truth is None:
            raise ValueError("the result has no ground truth")
        return RayCaster(self.truth).distance(transform_points(self.truth_from_data, self.shown_mesh.vertices))

    @cached_property
    def normal_errors_deg(self) -> Float[np.ndarray, "v"]:
        """Angular error in degrees of each displayed vertex's normal, averaged over the views that see it well.

        It is NaN where no view does.

        Raises:
            ValueError: There is no scene, or there are no cameras.
        """
        c2w = self.mesh_cameras
        if self.scene is None or c2w is None:
            raise ValueError("the result has no normal maps or no cameras")
        mesh = self.shown_mesh
        vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
        sums, counts = np.zeros((2, len(vertices)))
        tolerance = depth_tolerance(mesh)
        for K, pose, observed, valid in zip(self.scene.K, c2w, self.scene.normals, self.scene.valid):
            index, (rows, columns), _ = seen_points(vertices, normals, valid, K, pose, self.rays, tolerance)
            normal_map = torch.from_numpy(observed.astype(np.float32)).permute(2, 0, 1)
            seen = lookup(normal_map, np.stack([columns, rows], axis=-1)) @ pose[:3, :3].T
            sums[index] += angular_error_deg(seen, normals[index])
            counts[index] += 1
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def rendered_normals(self, view: int, c2w: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "h w 3"]:
        """Render the displayed mesh's normals with the intrinsics of a view; OpenCV camera axes, zero off the mesh."""
        assert self.scene is not None
        K, width, height = self.scene.K[view], self.scene.width, self.scene.height
        return camera_normals(self.shown_mesh, self.rays, K, c2w, width, height)[0]


def read_displayed_result(
    path: Path,
    *,
    data: Path | None = None,
    normals_folder: str | None = None,
    poses: Path | None = None,
    truth: Path | None = None,
    align: bool = True,
    units: str = "units",
) -> DisplayedResult:
    """Read a result for display; unless `pmni eval` evaluated it, align it to the ground truth and evaluate it.

    Args:
        path: Folder that `pmni eval`, `pmni export` or `pmni register` wrote, or a mesh file.
        data: Scene folder; by default the one that the result refers to, if it exists.
        normals_folder: Name of the scene's folder with the normal maps, if it has several.
        poses: File of the mesh's poses; by default the one beside the mesh.
        truth: Ground-truth folder; by default the ground truth within the scene's folder.
        align: Whether to align the result to the ground truth, unless its poses are the given ones.
        units: Name of the data's units; results of `pmni eval` have their own.

    Raises:
        PmniError: A file is missing or invalid, or files don't belong together.
    """
    result = read_result(path, data=data, normals_folder=normals_folder, poses_file=poses)
    mesh, record = result.mesh, result.record
    if mesh is None:
        raise PmniError(
            f"{path}: contains no mesh; give a folder that pmni eval, export or register wrote, or a mesh file"
        )
    scene, cameras = result.scene, _cameras(result)
    units = record.get("units", units)
    # The stored evaluation is reused unless an option changes what it depends on.
    reuse = bool(record) and align and truth is data is poses is None
    ground_truth = None
    if truth is not None:
        ground_truth = read_ground_truth(truth)
    elif scene is not None and not (reuse and record["surface"] is None):
        ground_truth = find_ground_truth(scene)
    similarity, metrics = np.eye(4), ()
    if reuse:
        metrics = _format_metrics(record["surface"], record["poses"], record["normals"], units)
        if record["similarity"] is not None:
            similarity = np.array(record["similarity"])
    elif ground_truth is not None:
        scores = _score(result, cameras.get("refined"), ground_truth, align)
        similarity, pose_scores = scores.similarity, None if scores.poses is None else asdict(scores.poses)
        metrics = _format_metrics(asdict(scores.surface), pose_scores, None, units)
    return DisplayedResult(
        title=result.title,
        mesh=mesh,
        scene=scene,
        cameras=cameras,
        truth=None if ground_truth is None else ground_truth.mesh.copy().apply_transform(ground_truth.world_from_unit),
        truth_from_data=similarity,
        metrics=metrics,
        units=units,
    )


def evaluated_for_display(result: StoredResult, mesh: trimesh.Trimesh) -> DisplayedResult:
    """Display of a mesh of a result that `pmni eval` wrote, without evaluating it again.

    Args:
        result: Evaluated result.
        mesh: Its mesh, or a simplified one.
    """
    record, scene = result.record, result.scene
    truth = None if scene is None or record["surface"] is None else find_ground_truth(scene)
    return DisplayedResult(
        title=result.title,
        mesh=mesh,
        scene=scene,
        cameras=_cameras(result),
        truth=None if truth is None else truth.mesh.copy().apply_transform(truth.world_from_unit),
        truth_from_data=np.eye(4) if record["similarity"] is None else np.array(record["similarity"]),
        units=record["units"],
    )


def _cameras(result: StoredResult) -> dict[str, Float[np.ndarray, "n 4 4"]]:
    if result.scene is None:
        if result.poses_file is not None:
            raise PmniError(f"{result.poses_file}: the scene of these poses is unknown; give --data DIR too")
        return {}
    sets = {"refined": result.c2w, "given": result.given_c2w}
    return {name: c2w for name, c2w in sets.items() if c2w is not None}


def _score(
    result: StoredResult, c2w: Float[np.ndarray, "n 4 4"] | None, truth: GroundTruth, align: bool
) -> GeometryScores:
    """Align a result to the ground truth and compute its errors.

    Raises:
        PmniError: No ground-truth camera sees the mesh, or the ground truth has another number of views.
    """
    if c2w is not None and len(c2w) != len(truth.c2w):
        raise PmniError(
            f"{result.path}: has {len(c2w)} views, but the ground truth has {len(truth.c2w)}; "
            "give the ground truth of the same scene"
        )
    # Given poses already define the ground truth's world, so that alignment would hide errors.
    are_given = c2w is not None and result.scene is not None and poses_are_given(c2w, result.scene)
    assert result.mesh is not None
    scores = score_geometry(result.mesh, c2w, truth, align=align and not are_given)
    if scores is None:
        raise PmniError(
            f"{result.path}: no ground-truth camera sees this mesh; give the ground truth of the same scene"
        )
    return scores


def _format_metrics(
    surface: dict[str, Any] | None, poses: dict[str, Any] | None, normals: dict[str, Any] | None, units: str
) -> tuple[str, ...]:
    """Main metrics from the sections of metrics.json."""
    metrics = []
    if surface is not None:
        metrics.append(f"Chamfer distance {surface['chamfer']:.4g} {units} ({surface['chamfer_pct']:.3g}%)")
    if poses is not None:
        metrics.append(f"rotation error {poses['rot_deg']:.3g} deg")
    if normals is not None and normals["mae_deg"] is not None:
        metrics.append(f"normal error {normals['mae_deg']:.3g} deg")
    return tuple(metrics)
