# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's pipeline with metrics against ground truth, if the scene's folder contains it.

Besides the metrics of single views, `ns-eval` and the training curves then contain `chamfer`, `chamfer_pct`, `fscore`,
`rot_deg`, `rot_deg_max` and `position` (defined in docs/results.md). During training they are computed from a coarse mesh
and a subset of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Type, cast

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from pmni_nerfstudio.data.datamanager import PmniDataManager
from pmni_nerfstudio.data.dataset import PmniDataset
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.data.split_views import SplitViews
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.training.corrections import apply_corrections
from pmni_nerfstudio.training.photometric_normals import ImageNormals
from pmni_nerfstudio.training.trainer import NotFiniteError
from pmni_nerfstudio.viewer.live import LivePage

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import Trainer

    from pmni_nerfstudio.evaluation.ground_truth import GroundTruth
    from pmni_nerfstudio.model.initialization import Initialization
    from pmni_nerfstudio.model.pmni_model import PmniModel
    from pmni_nerfstudio.registration.views import Views

COARSE_CELLS, COARSE_FIT_POINTS, COARSE_RAYS = 128, 2_000, 200_000
"""Mesh cells along the diameter of the unit sphere, alignment points and rays of evaluations during training."""
FINE_CELLS, FINE_FIT_POINTS = 512, 20_000
"""Mesh cells along the diameter of the unit sphere and alignment points of `ns-eval`."""

_BLOCK = "field.geometry.detail."
"""Names of the parts of the field's finer block for close-ups."""


@dataclass
class PmniPipelineConfig(VanillaPipelineConfig):
    """Data manager and model."""

    _target: Type = field(default_factory=lambda: PmniPipeline)
    """Target class to instantiate."""


class PmniPipeline(VanillaPipeline):
    """Pipeline of PMNI's methods: live page, checks for values that are not finite, metrics against ground truth."""

    last_step: Dict[str, Any] = {}
    """Batch and losses of the current training step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.live = LivePage()

    def load_pipeline(self, loaded_state: Dict[str, Any], step: int) -> None:
        """Load a checkpoint's state, with the normals and intrinsics that the run was trained with.

        nerfstudio ignores parts that are missing or left over, and so would drop levels of the grid without a word.

        Raises:
            SystemExit: the checkpoint has other parts than the model; with code 1, after one line on stderr.
        """
        with exit_on_error():
            self._check_parts(loaded_state, step)
        super().load_pipeline(loaded_state, step)
        apply_corrections(cast("PmniModel", self.model), cast(PmniDataManager, self.datamanager))

    def _check_parts(self, loaded_state: Dict[str, Any], step: int) -> None:
        """Compare the names of a checkpoint's parts with the model's."""
        stored = {
            name.removeprefix("module.").removeprefix("_model.").removeprefix("module.")  # as with several GPUs
            for name in loaded_state
            if name.startswith(("_model.", "module._model."))
        }
        own = set(self.model.state_dict())
        # A block without values has no place, and so no effect.
        missing = sorted(name for name in own - stored if not name.startswith(_BLOCK))
        if missing or stored - own:
            differing = [*(f"no {name}" for name in missing), *sorted(stored - own)]
            raise PmniError(
                f"{self._scene.root}: gives a model that does not match the checkpoint of step {step}, which has "
                f"{', '.join(differing[:3])}; use the scene and the program version that the run was trained with"
            )

    def reconstruct_blocks(self, trainer: Trainer, views: Views, initialization: Initialization, parent: Path) -> None:
        """Fill the model's field with the blocks of a large scene; see `BlockPipeline`."""
        from pmni_nerfstudio.large_scenes.running import reconstruct_blocks

        model, world_from_unit = cast("PmniModel", self.model), self._scene.world_from_unit
        reconstruct_blocks(trainer.config, model, views, initialization, world_from_unit, parent)

    @property
    def page(self) -> Optional[LivePage]:
        """Live page that follows registration and training; None without a viewer."""
        return self.live if self.live.attached else None

    def normals_from_images(
        self, views: SplitViews, c2w: Float[np.ndarray, "n 4 4"], mesh: trimesh.Trimesh, brightest: float
    ) -> Optional[ImageNormals]:
        """Normals of training views from the images that `pmni photometric` made the scene from, given a surface.

        Args:
            views: The training views.
            c2w: Their poses in the world of the mesh, OpenCV axes.
            mesh: Approximate surface.
            brightest: Albedo of its brightest parts.

        Returns:
            None if there are no such images of the size of the maps, or of a metal.

        Raises:
            PmniError: An image is missing or broken.
        """
        # Open3D takes seconds to load, and most scenes have no images.
        from pmni_nerfstudio.material.find_capture import captured_views

        captured = captured_views(self._scene, views.names)
        if captured is None:
            return None
        if isinstance(captured, str):
            CONSOLE.log(f"Photometric refinement: left out, the images are not found: {escape(captured)}")
            return None
        from pmni_nerfstudio.geometry.ray_casting import RayCaster
        from pmni_nerfstudio.material.lit_views import Surface, lit_views
        from pmni_nerfstudio.material.normal_refinement import refine_normals

        surface = Surface(mesh, RayCaster(mesh))
        scene = replace(self._scene, names=views.names, K=views.K)
        lit = lit_views(captured.capture, scene, c2w, surface, captured.gamma)
        found = refine_normals(lit, surface, brightest)
        if found is None:
            CONSOLE.log("Photometric refinement: left out, the images show a metal")
            return None
        if any(normals.shape != views.normals.shape[1:] for normals in found.normals):
            CONSOLE.log("Photometric refinement: left out, the images and the maps differ in size")
            return None
        return ImageNormals(found.normals, found.residual, found.direct_residual)

    @property
    def _scene(self) -> Scene:
        dataset = self.datamanager.train_dataset
        assert isinstance(dataset, PmniDataset)
        return dataset.scene

    @cached_property
    def ground_truth(self) -> Optional[GroundTruth]:
        """Ground truth of the scene, read at first use. Invalid ground truth is ignored with a warning."""
        from pmni_nerfstudio.evaluation.ground_truth import find_ground_truth

        scene = self._scene
        try:
            truth = find_ground_truth(scene)
        except PmniError as error:
            CONSOLE.log(f"[bold yellow]Warning: no comparison with ground truth: {escape(str(error))}")
            return None
        if truth is not None and len(truth.c2w) != scene.num_views:
            CONSOLE.log(
                f"[bold yellow]Warning: {escape(str(scene.root))}: no comparison with ground truth: "
                f"it has {len(truth.c2w)} views, and the scene {scene.num_views}"
            )
            return None
        return truth

    def get_train_loss_dict(self, step: int) -> Tuple[Any, Dict[str, Any], Dict[str, Any]]:
        """Outputs, losses and metrics of a training batch.

        Raises:
            NotFiniteError: A loss is not finite.
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
        self.live.add_batch(outputs, batch)
        return outputs, losses, metrics

    def get_eval_image_metrics_and_images(self, step: int) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        """Metrics and images of one view, with metrics of a coarse mesh and the poses against ground truth."""
        metrics, images = super().get_eval_image_metrics_and_images(step)
        if self.ground_truth is not None:
            every = max(1, round(float(np.sqrt(self.ground_truth.masks.size / COARSE_RAYS))))
            metrics.update(self.ground_truth_metrics(self.ground_truth.every(every), COARSE_CELLS, COARSE_FIT_POINTS))
        return metrics, images

    def get_average_eval_image_metrics(
        self, step: Optional[int] = None, output_path: Optional[Path] = None, get_std: bool = False
    ) -> Dict[str, Any]:
        """Average metrics of all views, with metrics of surface and poses against ground truth."""
        metrics = super().get_average_eval_image_metrics(step, output_path, get_std)
        if self.ground_truth is not None:
            metrics.update(self.ground_truth_metrics(self.ground_truth, FINE_CELLS, FINE_FIT_POINTS))
        return metrics

    def ground_truth_metrics(self, truth: GroundTruth, resolution: int, fit_points: int) -> Dict[str, float]:
        """Errors of surface and poses, as `pmni eval` computes them.

        Args:
            truth: Ground truth of the scene.
            resolution: Number of mesh cells along the diameter of the unit sphere.
            fit_points: Number of surface points that the alignment uses.

        Returns:
            Metrics by name; empty, with a line in the log, if there is no surface to evaluate.
        """
        from pmni_nerfstudio.evaluation.geometry_scores import score_geometry
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
        found = score_geometry(
            transformed_mesh(mesh, world_from_unit),
            transform_poses(world_from_unit, poses.c2w_opencv_double()),
            truth,
            align=poses.enabled,
            views=np.array(model.views.indices),
            fit_points=fit_points,
        )
        if found is None or found.poses is None:
            CONSOLE.log("Evaluation: the surface is not visible from the ground truth cameras.")
            return {}
        surface = {name: getattr(found.surface, name) for name in ("chamfer", "chamfer_pct", "fscore")}
        return surface | {name: getattr(found.poses, name) for name in ("rot_deg", "rot_deg_max", "position")}
