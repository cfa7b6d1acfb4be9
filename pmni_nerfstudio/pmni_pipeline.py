# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's pipeline, which measures against the truth too where the scene's folder has it.

So `ns-eval` and the Trainer's curves have `chamfer` and `position` in the data's units, `chamfer_pct` (of the object's
diameter), `rot_deg` and `rot_deg_max`, beside what the model says of single views. While it trains these come from a
coarse mesh and some of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Type, cast

import numpy as np
import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from pmni_nerfstudio.data.dataset import PmniDataset
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.training.trainer import NotFiniteError
from pmni_nerfstudio.viewer.live import Live

if TYPE_CHECKING:
    from pmni_nerfstudio.evaluation.ground_truth import Truth
    from pmni_nerfstudio.model.pmni_model import PmniModel

COARSE, COARSE_POINTS, COARSE_RAYS = 128, 2_000, 200_000
FINE, FINE_POINTS = 512, 20_000
"""Cells along the diameter, points that the alignment goes by, and rays: while it trains, and for `ns-eval`."""


@dataclass
class PmniPipelineConfig(VanillaPipelineConfig):
    """Data and model."""

    _target: Type = field(default_factory=lambda: PmniPipeline)
    """Target class to instantiate."""


class PmniPipeline(VanillaPipeline):
    """See above."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.live = Live()

    @property
    def watcher(self) -> Optional[Live]:
        """Who watches what training starts from."""
        return self.live if self.live.attached else None

    @property
    def _scene(self) -> Scene:
        dataset = self.datamanager.train_dataset
        assert isinstance(dataset, PmniDataset)
        return dataset.scene

    @cached_property
    def truth(self) -> Optional[Truth]:
        """The scene's, read when it is first asked for. What is wrong with it is said, and ends no training."""
        from pmni_nerfstudio.evaluation.ground_truth import find_truth

        scene = self._scene
        try:
            truth = find_truth(scene)
        except PmniError as error:
            CONSOLE.log(f"[bold yellow]Warning: nothing is compared with the truth: {escape(str(error))}")
            return None
        if truth is not None and len(truth.c2w) != scene.num_views:
            CONSOLE.log(f"[bold yellow]Warning: {escape(str(scene.root))}: the truth there is of other views; not used")
            return None
        return truth

    last_step: Dict[str, Any] = {}
    """Batch and losses of the training step that is under way."""

    def get_train_loss_dict(self, step: int) -> Tuple[Any, Dict[str, Any], Dict[str, Any]]:
        """Outputs, losses and metrics of a batch.

        Raises:
            NotFiniteError: naming the losses.
        """
        rays, batch = self.datamanager.next_train(step)
        self.last_step = {"batch": batch}
        outputs = self._model(rays)
        metrics = self.model.get_metrics_dict(outputs, batch)
        losses = self.model.get_loss_dict(outputs, batch, metrics)
        self.last_step["losses"] = {name: loss.detach() for name, loss in losses.items()}
        if not bool(torch.stack(list(self.last_step["losses"].values())).isfinite().all()):
            bad = [name for name, loss in losses.items() if not bool(loss.isfinite())]
            raise NotFiniteError(", ".join(bad))
        self.live.note(outputs, batch)
        return outputs, losses, metrics

    def get_eval_image_metrics_and_images(self, step: int) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        """One view, and the truth's measures on a coarse mesh."""
        metrics, images = super().get_eval_image_metrics_and_images(step)
        if self.truth is not None:
            every = max(1, round(float(np.sqrt(self.truth.masks.size / COARSE_RAYS))))
            metrics.update(self.truth_metrics(self.truth.every(every), COARSE, COARSE_POINTS))
        return metrics, images

    def get_average_eval_image_metrics(
        self, step: Optional[int] = None, output_path: Optional[Path] = None, get_std: bool = False
    ) -> Dict[str, Any]:
        """All views, and the truth's measures."""
        metrics = super().get_average_eval_image_metrics(step, output_path, get_std)
        if self.truth is not None:
            metrics.update(self.truth_metrics(self.truth, FINE, FINE_POINTS))
        return metrics

    def truth_metrics(self, truth: Truth, resolution: int, fit_points: int) -> Dict[str, float]:
        """Surface and poses against the truth, as `pmni eval` measures them.

        Args:
            truth: of the scene.
            resolution: of the mesh, cells along the diameter of the scene's sphere.
            fit_points: that the alignment goes by.

        Returns:
            Nothing, and a line in the log, where there is no surface to be measured.
        """
        from pmni_nerfstudio.evaluation.score import score
        from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
        from pmni_nerfstudio.geometry.mesh import transformed_mesh

        model = cast("PmniModel", self.model)
        poses = model.camera_optimizer
        world_from_unit = self._scene.world_from_unit
        try:
            mesh = extract_mesh(model.field.sdf, resolution, device=model.device, progress=False)
        except PmniError as error:
            CONSOLE.log(f"Evaluation: {error}")
            return {}
        found = score(
            transformed_mesh(mesh, world_from_unit),
            transform_poses(world_from_unit, poses.c2w_opencv_double()),
            truth,
            align=poses.learns,
            views=np.array(model.views.indices),
            fit_points=fit_points,
        )
        if found is None or found.poses is None:
            CONSOLE.log("Evaluation: the true cameras see nothing of the surface.")
            return {}
        surface = {name: getattr(found.surface, name) for name in ("chamfer", "chamfer_pct", "fscore")}
        return surface | {name: getattr(found.poses, name) for name in ("rot_deg", "rot_deg_max", "position")}
