# SPDX-License-Identifier: Apache-2.0
"""The methods: `ns-train pmni` (poses optimised) and `ns-train pmni-calibrated` (poses fixed: SuperNormal's setting)."""

from __future__ import annotations

from typing import Any, Dict, Literal

import torch
from nerfstudio.configs.base_config import LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from pmni_nerfstudio.data.datamanager import PmniDataManagerConfig
from pmni_nerfstudio.data.dataparser import PmniDataParserConfig
from pmni_nerfstudio.model.config import PmniModelConfig
from pmni_nerfstudio.model.loss_schedule import LossWeights
from pmni_nerfstudio.model.lr_schedule import FusedAdamConfig, RunFractionSchedulerConfig
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizerConfig


def _optimizer(lr: float, final: float = 0.05) -> Dict[str, Any]:
    return {"optimizer": FusedAdamConfig(lr=lr), "scheduler": RunFractionSchedulerConfig(final=final)}


def _trainer(
    method_name: str, pose_mode: Literal["off", "SE3"], steps: int, loss_weights: LossWeights, hull_votes: int
) -> TrainerConfig:
    cuda = torch.cuda.is_available()
    return TrainerConfig(
        method_name=method_name,
        machine=MachineConfig(device_type="cuda" if cuda else "cpu"),
        max_num_iterations=steps,
        # A run takes minutes: a checkpoint often enough that little is lost.
        steps_per_save=500,
        steps_per_eval_batch=0,
        steps_per_eval_image=500,
        steps_per_eval_all_images=0,
        mixed_precision=False,
        pipeline=VanillaPipelineConfig(
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
            "pose_rotation": _optimizer(3e-3, final=0.02),
            "pose_translation": _optimizer(2e-3, final=0.02),
            "pose_depth_scale": _optimizer(1e-3),
        },
        # Both: the page while it trains, and curves that stay. Without a browser open the viewer costs nothing.
        vis="viewer+tensorboard",
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
        logging=LoggingConfig(steps_per_log=10),
    )


pmni = MethodSpecification(
    config=_trainer("pmni", "SE3", steps=2000, loss_weights=LossWeights(mask=(0.1,)), hull_votes=3),
    description="PMNI: surface and camera poses from normal maps and masks, poses rough or unknown.",
)
pmni_calibrated = MethodSpecification(
    config=_trainer("pmni-calibrated", "off", steps=1500, loss_weights=LossWeights(mask=(0.1,)), hull_votes=1),
    description="Surface from normal maps, masks and calibrated cameras (the setting of SuperNormal).",
)
