# SPDX-License-Identifier: Apache-2.0
"""Methods for `ns-train`.

`pmni` optimizes surface and poses; `pmni-calibrated` keeps the poses fixed, which is SuperNormal's setting;
`pmni-original` is PMNI's published recipe with the same renderer, for comparison.
"""

from __future__ import annotations

from typing import Any, Dict, Literal

import torch
from nerfstudio.configs.base_config import LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.plugins.types import MethodSpecification

from pmni_nerfstudio.data.datamanager import PmniDataManagerConfig
from pmni_nerfstudio.data.dataparser import PmniDataParserConfig
from pmni_nerfstudio.fields.sdf_field import PmniFieldConfig
from pmni_nerfstudio.model.loss_schedule import LossWeights
from pmni_nerfstudio.model.pmni_model import PmniModelConfig
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizerConfig
from pmni_nerfstudio.pmni_pipeline import PmniPipelineConfig
from pmni_nerfstudio.startup_time import skip_source_lines
from pmni_nerfstudio.training.lr_schedule import Decay, FusedAdamConfig, RunFractionSchedulerConfig
from pmni_nerfstudio.training.trainer import PmniTrainerConfig

skip_source_lines()


def _optimizer(
    lr: float, final: float = 0.05, decay: Decay = "exponential", warmup: float = 0.02, max_norm: float = 1.0
) -> Dict[str, Any]:
    """Optimizer and scheduler of one parameter group, in nerfstudio's format."""
    return {
        "optimizer": FusedAdamConfig(lr=lr, max_norm=max_norm),
        "scheduler": RunFractionSchedulerConfig(warmup=warmup, final=final, decay=decay),
    }


def _trainer(
    method_name: str, pose_mode: Literal["off", "SE3"], steps: int, loss_weights: LossWeights, hull_votes: int
) -> TrainerConfig:
    """Configuration that all methods share."""
    cuda = torch.cuda.is_available()
    return PmniTrainerConfig(
        method_name=method_name,
        machine=MachineConfig(device_type="cuda" if cuda else "cpu"),
        max_num_iterations=steps,
        steps_per_save=500,
        steps_per_eval_batch=0,
        steps_per_eval_image=100,
        steps_per_eval_all_images=0,
        mixed_precision=False,
        pipeline=PmniPipelineConfig(
            datamanager=PmniDataManagerConfig(
                dataparser=PmniDataParserConfig(),
                train_num_rays_per_batch=8192 if cuda else 2048,
            ),
            model=PmniModelConfig(
                camera_optimizer=PmniPoseOptimizerConfig(mode=pose_mode),
                loss_weights=loss_weights,
                hull_votes=hull_votes,
                registration=pose_mode != "off",
            ),
        ),
        optimizers={
            "sdf": _optimizer(2e-3),
            "variance": _optimizer(1e-3),
            "pose_rotation": _optimizer(3e-3, final=0.02, max_norm=0.1),
            "pose_translation": _optimizer(2e-3, final=0.02, max_norm=0.1),
            "pose_depth_scale": _optimizer(1e-3),
        },
        # The viewer costs nothing until a browser opens it; TensorBoard keeps the curves. Its buttons write files, so
        # that only this machine reaches it unless the user wants otherwise.
        vis="viewer+tensorboard",
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, quit_on_train_completion=True, websocket_host="127.0.0.1"),
        logging=LoggingConfig(steps_per_log=10),
    )


pmni = MethodSpecification(
    config=_trainer("pmni", "SE3", steps=2000, loss_weights=LossWeights(mask=(0.03,)), hull_votes=3),
    description="PMNI: surface and camera poses from normal maps and masks; rough or unknown initial poses.",
)
pmni_calibrated = MethodSpecification(
    config=_trainer("pmni-calibrated", "off", steps=1500, loss_weights=LossWeights(mask=(0.03,)), hull_votes=1),
    description="Surface from normal maps, masks and calibrated cameras (SuperNormal's setting).",
)


def _original() -> TrainerConfig:
    """PMNI as published (Pei et al., CVPR 2025): a sphere, a ring of cameras, three stages, and Adam on the poses.

    The paper counts absolute steps of 30,000; here they are fractions, so that a shorter run follows the same recipe.
    Differences: the renderer and its samples, the mask loss, and a sharpness that follows a schedule up to about the
    value at which a learned one ends. (A learned one, as in the paper, would not rise in a shorter run; and at `pmni`'s
    final sharpness of 4,000, mask weights of 3 to 5 would dominate all other losses.)
    """
    steps = 30_000
    stages = LossWeights(
        stage_ends=(1 / 3, 2 / 3, 1.0),
        normal=(0.0, 1.0, 1.0),
        depth=(0.1, 1.0, 0.0),
        mask=(3.0, 5.0, 5.0),
        eikonal=(1.0,),
    )
    config = _trainer("pmni-original", "SE3", steps=steps, loss_weights=stages, hull_votes=3)
    config.steps_per_save = 2000
    data, model = config.pipeline.datamanager, config.pipeline.model
    assert isinstance(data, PmniDataManagerConfig) and isinstance(model, PmniModelConfig)
    data.train_num_rays_per_batch = 4096
    data.dataparser.initial_poses = "ring"
    model.registration = False
    model.start = "sphere"
    model.gradients = "directional"
    model.inv_s_floor = (20.0, 300.0)
    model.converged_normals_deg = 0.0
    # One more of the 14 levels every 1,000 steps.
    model.sdf_field = PmniFieldConfig(encoding="hash", initial_levels=1 / 14, unlock_until=13_000 / steps)
    cosine = _optimizer(5e-4, 0.05, "cosine", warmup=500 / steps)
    poses = _optimizer(1e-3, 0.5, "third", warmup=0.0, max_norm=0.1)
    config.optimizers = {
        "sdf": cosine,
        "variance": cosine,
        "pose_rotation": poses,
        "pose_translation": poses,
        "pose_depth_scale": poses,
    }
    return config


pmni_original = MethodSpecification(
    config=_original(),
    description="Baseline: PMNI's published recipe (ring of cameras, three stages, Adam on poses) with our renderer.",
)
