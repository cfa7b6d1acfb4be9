# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a reconstruction: surface, poses, normals and mesh, as far as ground truth is available."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pmni_nerfstudio.data.scene import WORLD_SPACE, Scene, read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.geometry_scores import GeometryScores, Rays, score_geometry
from pmni_nerfstudio.evaluation.ground_truth import GroundTruth, given_poses
from pmni_nerfstudio.evaluation.mesh_statistics import MeshStatistics, mesh_statistics
from pmni_nerfstudio.evaluation.metrics import NormalScore, score_normals
from pmni_nerfstudio.evaluation.reconstruction import Reconstruction
from pmni_nerfstudio.geometry.transforms import transform_poses

if TYPE_CHECKING:
    from pmni_nerfstudio.export.maps import RenderedView

TRUE_NORMALS = f"{WORLD_SPACE}_GT"
"""Folder of a scene that holds ground-truth normals in world axes."""

OnView = Callable[[str, "RenderedView"], None]
"""Callback that receives the name and the rendered maps of a view."""


@dataclass(frozen=True, eq=False)
class NormalScores:
    """Errors of the rendered normals of all views."""

    against: Literal["inputs", "truth"]
    """Reference of the comparison: the method's input normals, or ground-truth normals."""
    views: tuple[NormalScore, ...]
    trained: np.ndarray
    """(N,) bool, views used in training; the others were held out."""

    def mae_deg(self, which: np.ndarray) -> float | None:
        """Mean of the mean angular errors of the selected views (N,) bool, as in `ns-eval`; None if none is selected."""
        selected = [view.mae_deg for view, on in zip(self.views, which) if on]
        return float(np.mean(selected)) if selected else None

    @property
    def median_deg(self) -> float:
        """Median over the training views of their median angular errors."""
        return float(np.median([v.median_deg for v, on in zip(self.views, self.trained) if on]))

    @property
    def mask_iou(self) -> float:
        """Mean mask IoU of the training views."""
        return float(np.mean([v.mask_iou for v, on in zip(self.views, self.trained) if on]))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All metrics of a reconstruction."""

    scores: GeometryScores | None
    """Surface and pose errors; None without ground truth."""
    aligned: bool
    """Whether the reconstruction was aligned to the ground truth by a similarity."""
    normals: NormalScores | None
    """Normal errors; None without a scene, or if the poses of its views are unknown."""
    mesh: MeshStatistics


def evaluate(
    reconstruction: Reconstruction,
    scene: Scene | None,
    truth: GroundTruth | None,
    align: bool,
    threshold: float,
    rays: Rays,
    on_view: OnView | None = None,
) -> Evaluation:
    """Evaluate a reconstruction.

    Args:
        reconstruction: Mesh and poses to evaluate.
        scene: Scene whose normals the rendered ones are compared with.
        truth: Ground truth of surface and poses.
        align: Whether to align estimated poses and their surface to the ground truth by a similarity first.
        threshold: Distance threshold of the F-score, in units of the data's world.
        rays: Pixels whose rays sample the surfaces: "masked" for those of the masks, "all" for all pixels.
        on_view: Called with the rendered maps of each view, in order.

    Raises:
        PmniError: No ground-truth camera sees the mesh, or the ground truth has another number of views.
    """
    align = align and not reconstruction.calibrated
    scores = None
    if truth is not None:
        source, trained = reconstruction.source, reconstruction.trained
        if len(truth.c2w) != len(trained):
            raise PmniError(
                f"{source}: has {len(trained)} views, but the ground truth has {len(truth.c2w)}; "
                "give the ground truth of the same scene"
            )
        own = np.flatnonzero(trained)
        c2w = None if reconstruction.c2w is None else reconstruction.c2w[own]
        scores = score_geometry(reconstruction.mesh, c2w, truth, align, threshold, rays, views=own)
        if scores is None:
            advice = "" if align else " or evaluate with --align"
            raise PmniError(f"{source}: no ground-truth camera sees this mesh; give a mesh in the data's world{advice}")
    normals = None if scene is None else _score_views(reconstruction, scene, truth, scores, on_view)
    return Evaluation(scores, align and scores is not None, normals, mesh_statistics(reconstruction.mesh))


def rendering_poses(
    reconstruction: Reconstruction, scene: Scene, truth: GroundTruth | None, scores: GeometryScores | None
) -> np.ndarray | None:
    """Poses (N, 4, 4) in the reconstruction's world at which its views are rendered; None if unknown.

    Views that were held out of training use their ground-truth poses, mapped to the reconstruction's world by the
    inverse alignment, or else their given poses.
    """
    if truth is not None and scores is not None:
        true_c2w = transform_poses(truth.world_from_unit, truth.c2w)
        held_out = transform_poses(np.linalg.inv(scores.similarity), true_c2w)
    else:
        held_out = given_poses(scene)
        if held_out is None:
            return reconstruction.c2w
    if reconstruction.c2w is None:
        return held_out
    return np.where(reconstruction.trained[:, None, None], reconstruction.c2w, held_out)


def reference_normals(scene: Scene, truth: GroundTruth | None) -> tuple[np.ndarray, Literal["inputs", "truth"]]:
    """Reference normals (N, H, W, 3) in OpenCV camera axes: ground truth if the scene has it, else the inputs."""
    folder = scene.root / TRUE_NORMALS
    if not folder.is_dir() or scene.c2w is None or scene.normal_files[0].parent == folder:
        return scene.normals, "inputs"
    true = read_scene(scene.root, TRUE_NORMALS)
    if true.normals.shape != scene.normals.shape:  # the run used downscaled maps
        true = read_scene(scene.root, TRUE_NORMALS, scene.height / true.height)
    if truth is None:
        return true.normals, "truth"
    # World normals were rotated into the given cameras, which may be rough; rotate them on into the true cameras.
    true_from_given = np.einsum("nji,njk->nik", truth.c2w[:, :3, :3], scene.c2w[:, :3, :3]).astype(np.float32)
    return np.einsum("nik,nhwk->nhwi", true_from_given, true.normals.astype(np.float32)), "truth"


def _score_views(
    reconstruction: Reconstruction,
    scene: Scene,
    truth: GroundTruth | None,
    scores: GeometryScores | None,
    on_view: OnView | None,
) -> NormalScores | None:
    c2w = rendering_poses(reconstruction, scene, truth, scores)
    if c2w is None:
        return None
    reference, against = reference_normals(scene, truth)
    found = []
    rendered = zip(scene.names, reconstruction.render(c2w), reference, scene.masks, strict=True)
    for i, (name, view, normals, mask) in enumerate(rendered):
        unknown = None if scene.unknown is None else scene.unknown[i]
        found.append(score_normals(view.normals, normals.astype(np.float32), mask, unknown))
        if on_view is not None:
            on_view(name, view)
    return NormalScores(against, tuple(found), reconstruction.trained)
