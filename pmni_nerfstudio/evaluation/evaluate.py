# SPDX-License-Identifier: Apache-2.0
"""An evaluation whole: surface, poses, normals and mesh of a result, as far as the truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pmni_nerfstudio.data.scene import WORLD_SPACE, Scene, read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.ground_truth import Truth, given_poses
from pmni_nerfstudio.evaluation.mesh_statistics import MeshFacts, mesh_facts
from pmni_nerfstudio.evaluation.metrics import NormalScore, score_normals
from pmni_nerfstudio.evaluation.result import Result
from pmni_nerfstudio.evaluation.score import Rays, Scores, score
from pmni_nerfstudio.geometry.transforms import transform_poses

if TYPE_CHECKING:
    from pmni_nerfstudio.export.maps import RenderedView

TRUE_NORMALS = f"{WORLD_SPACE}_GT"

OnView = Callable[[str, "RenderedView"], None]
"""Told a view's name and its rendered maps."""


@dataclass(frozen=True, eq=False)
class ViewsScore:
    """Normals of all views."""

    against: Literal["inputs", "truth"]
    """What they are compared with: the normals that the method was given, or noise-free ones."""
    views: tuple[NormalScore, ...]
    trained: np.ndarray
    """(N,) bool; the others were held out."""

    def mae_deg(self, which: np.ndarray) -> float | None:
        """Mean over the views chosen (N,) bool of their means, as `ns-eval` has it; None if there are none."""
        chosen = [view.mae_deg for view, on in zip(self.views, which) if on]
        return float(np.mean(chosen)) if chosen else None

    @property
    def median_deg(self) -> float:
        """Median over the training views of their medians."""
        return float(np.median([v.median_deg for v, on in zip(self.views, self.trained) if on]))

    @property
    def mask_iou(self) -> float:
        """Mean over the training views."""
        return float(np.mean([v.mask_iou for v, on in zip(self.views, self.trained) if on]))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything measured."""

    scores: Scores | None
    """None where the truth isn't known."""
    aligned: bool
    normals: ViewsScore | None
    """None without a scene."""
    facts: MeshFacts


def evaluate(
    result: Result,
    scene: Scene | None,
    truth: Truth | None,
    align: bool,
    threshold: float,
    rays: Rays,
    on_view: OnView | None = None,
) -> Evaluation:
    """Measure a result.

    Args:
        result: to be measured.
        scene: whose normals its own are compared with.
        truth: to compare surface and poses with.
        align: whether poses that were found, and their surface, are taken to the truth by a similarity first.
        threshold: of the F-score, in units of the data's world.
        rays: whose first hits are compared: those of the masks' pixels, or of all.
        on_view: told of every view's rendered maps, in order.

    Raises:
        PmniError: no true camera sees any of the result, or truth and result differ in their number of views.
    """
    align = align and not result.calibrated
    scores = None
    if truth is not None:
        if len(truth.c2w) != len(result.trained):
            raise PmniError(
                f"{result.source}: has {len(result.trained)} views and the truth {len(truth.c2w)}: is it this scene's?"
            )
        own = np.flatnonzero(result.trained)
        c2w = None if result.c2w is None else result.c2w[own]
        scores = score(result.mesh, c2w, truth, align, threshold, rays, views=own)
        if scores is None:
            advice = "is it in the data's world?" if align else "is it in the data's world, or does it need --align?"
            raise PmniError(f"{result.source}: none of the truth's cameras sees this mesh; {advice}")
    normals = None if scene is None else _normals(result, scene, truth, scores, on_view)
    return Evaluation(scores, align and scores is not None, normals, mesh_facts(result.mesh))


def view_poses(result: Result, scene: Scene, truth: Truth | None, scores: Scores | None) -> np.ndarray | None:
    """Poses (N, 4, 4) in the result's own world from which its views are to be rendered; None where unknown.

    Views that were not trained on stand where the truth has them, taken to the result's world by the alignment; else
    where they were given.
    """
    if truth is not None and scores is not None:
        true_c2w = transform_poses(truth.world_from_unit, truth.c2w)
        there = transform_poses(np.linalg.inv(scores.similarity), true_c2w)
    else:
        there = given_poses(scene)
        if there is None:
            return result.c2w
    if result.c2w is None:
        return there
    return np.where(result.trained[:, None, None], result.c2w, there)


def known_normals(scene: Scene, truth: Truth | None) -> tuple[np.ndarray, Literal["inputs", "truth"]]:
    """Normals (N, H, W, 3) in OpenCV camera axes to compare with: noise-free ones where the folder has them."""
    folder = scene.root / TRUE_NORMALS
    if not folder.is_dir() or scene.c2w is None or scene.normal_files[0].parent == folder:
        return scene.normals, "inputs"
    known = read_scene(scene.root, TRUE_NORMALS)
    if known.normals.shape != scene.normals.shape:  # trained on smaller maps
        known = read_scene(scene.root, TRUE_NORMALS, scene.height / known.height)
    if truth is None:
        return known.normals, "truth"
    # World normals were read by the given poses, which may be rough; the truth's turn them into the true cameras.
    turn = np.einsum("nji,njk->nik", truth.c2w[:, :3, :3], scene.c2w[:, :3, :3]).astype(np.float32)
    return np.einsum("nik,nhwk->nhwi", turn, known.normals.astype(np.float32)), "truth"


def _normals(
    result: Result, scene: Scene, truth: Truth | None, scores: Scores | None, on_view: OnView | None
) -> ViewsScore | None:
    at = view_poses(result, scene, truth, scores)
    if at is None:
        return None
    known, against = known_normals(scene, truth)
    found = []
    views: Iterator[RenderedView] = result.render(at)
    for name, view, normals, mask in zip(scene.names, views, known, scene.masks, strict=True):
        found.append(score_normals(view.normals, normals.astype(np.float32), mask))
        if on_view is not None:
            on_view(name, view)
    return ViewsScore(against, tuple(found), result.trained)
