# SPDX-License-Identifier: Apache-2.0
"""`ns-train neus-facto-small`: a small version of nerfstudio's neus-facto for machines without a GPU or network access.

nerfstudio's neus-facto does not run on a CPU: its field requires tinycudann's hash encoding, and its model downloads the
weights of an LPIPS network. Here the field uses nerfstudio's PyTorch hash encoding, and LPIPS is omitted. Two more things
differ: the masks are used, which nerfstudio's datasets do not read, and the normal loss covers only pixels with a normal
(nerfstudio's pulls the others towards the zero vector). The rest of the method is nerfstudio's code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Optional, Tuple, Type

import torch
from nerfstudio.configs.base_config import LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.data.dataparsers.sdfstudio_dataparser import SDFStudioDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.sdf_field import SDFField, SDFFieldConfig
from nerfstudio.model_components.losses import L1Loss, MSELoss, ScaleAndShiftInvariantLoss, monosdf_normal_loss
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, RGBRenderer, SemanticRenderer
from nerfstudio.model_components.scene_colliders import AABBBoxCollider, NearFarCollider
from nerfstudio.models.base_surface_model import SurfaceModel
from nerfstudio.models.neus_facto import NeuSFactoModel, NeuSFactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification
from nerfstudio.utils.colors import get_color
from torch import Tensor
from torch.nn import Parameter
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio

from pmni_nerfstudio.baselines.foreground import ForegroundDataManagerConfig
from pmni_nerfstudio.threads import limit_threads
from pmni_nerfstudio.training.lr_schedule import FusedAdamConfig, RunFractionSchedulerConfig, set_schedule_length


@dataclass
class TorchSDFFieldConfig(SDFFieldConfig):
    """nerfstudio's SDF field with its PyTorch hash encoding."""

    _target: Type = field(default_factory=lambda: TorchSDFField)
    """Target class to instantiate."""
    encoding_type: Literal["hash", "periodic", "tensorf_vm"] = "periodic"
    """Unused. It must differ from "hash", which selects tinycudann in nerfstudio."""
    smoothstep: bool = False
    """Unused: the PyTorch encoding always interpolates linearly."""


class TorchHashGrid(HashEncoding):
    """nerfstudio's PyTorch hash encoding with tinycudann's attribute for the output width."""

    @property
    def n_output_dims(self) -> int:
        """Number of features per point."""
        return self.get_out_dim()


class TorchSDFField(SDFField):
    """nerfstudio's SDF field with its PyTorch hash encoding."""

    config: TorchSDFFieldConfig

    def initialize_geo_layers(self) -> None:
        """Build the encoding, then the layers that depend on it, when the constructor of the base class needs them."""
        self.encoding = TorchHashGrid(
            num_levels=self.config.num_levels,
            min_res=self.config.base_res,
            max_res=self.config.max_res,
            log2_hashmap_size=self.config.log2_hashmap_size,
            features_per_level=self.config.features_per_level,
            implementation="torch",
        )
        super().initialize_geo_layers()


class ForegroundSurfaceModel(SurfaceModel):
    """nerfstudio's SurfaceModel without a background model and without LPIPS.

    It comes between NeuS and SurfaceModel in the method resolution order of `NeuSFactoSmall`, so that NeuS calls this
    class instead of SurfaceModel, which always builds the LPIPS network.
    """

    def populate_modules(self) -> None:
        """Build field, collider, renderers, losses and metrics under SurfaceModel's names."""
        super(SurfaceModel, self).populate_modules()
        config = self.config
        self.scene_contraction = SceneContraction(order=float("inf"))
        self.field = config.sdf_field.setup(
            aabb=self.scene_box.aabb,
            spatial_distortion=self.scene_contraction,
            num_images=self.num_train_data,
            use_average_appearance_embedding=config.use_average_appearance_embedding,
        )
        if config.overwrite_near_far_plane:
            self.collider = NearFarCollider(config.near_plane, config.far_plane)
        else:
            self.collider = AABBBoxCollider(self.scene_box, near_plane=config.near_plane)
        color = config.background_color
        self.renderer_rgb = RGBRenderer(get_color(color) if color in ("white", "black") else color)
        self.renderer_accumulation = AccumulationRenderer()
        self.renderer_depth = DepthRenderer(method="expected")
        self.renderer_normal = SemanticRenderer()
        self.rgb_loss, self.eikonal_loss = L1Loss(), MSELoss()
        self.depth_loss = ScaleAndShiftInvariantLoss(alpha=0.5, scales=1)
        self.psnr, self.ssim = PeakSignalNoiseRatio(data_range=1.0), structural_similarity_index_measure
        self.lpips = lambda image, rgb: float("nan")  # in place of the network; the value is discarded

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """Parameters of the field; there is no background model."""
        return {"fields": list(self.field.parameters())}

    def get_loss_dict(
        self, outputs: Dict[str, Any], batch: Dict[str, Any], metrics_dict: Optional[Dict[str, Any]] = None
    ) -> Dict[str, Tensor]:
        """nerfstudio's losses, with the normal loss restricted to rays whose normal is known."""
        others = {key: value for key, value in batch.items() if key != "normal"}
        losses = super().get_loss_dict(outputs, others, metrics_dict)
        if self.training and "normal" in batch and self.config.mono_normal_loss_mult > 0:
            normals = batch["normal"].to(self.device)
            known = normals.norm(dim=-1) > 0.5
            if known.any():
                loss = monosdf_normal_loss(outputs["normal"][known], normals[known])
                losses["normal_loss"] = loss * self.config.mono_normal_loss_mult
        return losses

    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Tensor]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """nerfstudio's metrics and images, without LPIPS."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        del metrics["lpips"]
        return metrics, images


@dataclass
class NeuSFactoSmallConfig(NeuSFactoModelConfig):
    """nerfstudio's neus-facto, small enough for a CPU."""

    _target: Type = field(default_factory=lambda: NeuSFactoSmall)
    """Target class to instantiate."""
    background_model: Literal["none"] = "none"
    """Background model: always none; pixels off the object have the background color."""
    cos_anneal_fraction: float = 0.5
    """Fraction of the run over which NeuS anneals the cosine between ray and normal (neus-facto: 50,000 steps)."""
    proposal_anneal_fraction: float = 0.1
    """Fraction of the run over which the weights of the proposal networks are annealed (neus-facto: 1,000 steps)."""


class NeuSFactoSmall(NeuSFactoModel, ForegroundSurfaceModel):
    """nerfstudio's neus-facto with schedules in fractions of the run."""

    config: NeuSFactoSmallConfig

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        """Set the length of all schedules, and return nerfstudio's callbacks."""
        trainer, optimizers = training_callback_attributes.trainer, training_callback_attributes.optimizers
        if trainer is not None:
            steps = trainer.config.max_num_iterations
            self.anneal_end = max(1, round(self.config.cos_anneal_fraction * steps))
            self.config.proposal_weights_anneal_max_num_iters = max(
                1, round(self.config.proposal_anneal_fraction * steps)
            )
            if optimizers is not None:
                set_schedule_length(optimizers.schedulers, steps)
            if trainer.device == "cpu":
                limit_threads()
        return super().get_training_callbacks(training_callback_attributes)


def small_model() -> NeuSFactoSmallConfig:
    """Configuration with narrower networks, fewer samples per ray and smaller hash grids than neus-facto."""
    proposal = {"hidden_dim": 16, "log2_hashmap_size": 15, "num_levels": 5, "implementation": "torch"}
    return NeuSFactoSmallConfig(
        sdf_field=TorchSDFFieldConfig(
            use_grid_feature=True,
            num_layers=2,
            hidden_dim=64,
            geo_feat_dim=64,
            num_layers_color=2,
            hidden_dim_color=64,
            num_levels=8,
            max_res=256,
            log2_hashmap_size=17,
            bias=0.5,
            beta_init=0.3,
            inside_outside=False,  # an object seen from outside
        ),
        background_color="black",
        num_proposal_samples_per_ray=(32, 16),
        num_neus_samples_per_ray=16,
        proposal_net_args_list=[{**proposal, "max_res": 64}, {**proposal, "max_res": 256}],
        fg_mask_loss_mult=0.1,
        mono_normal_loss_mult=0.05,
        eval_num_rays_per_chunk=2048,
    )


def _optimizer(lr: float) -> Dict[str, Any]:
    # nerfstudio's schedulers store NumPy scalars, which PyTorch's safe loading of checkpoints refuses.
    return {
        "optimizer": FusedAdamConfig(lr=lr, eps=1e-15),
        "scheduler": RunFractionSchedulerConfig(warmup=0.02, final=0.05, decay="cosine"),
    }


neus_facto_small = MethodSpecification(
    config=TrainerConfig(
        method_name="neus-facto-small",
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        max_num_iterations=1200,  # about 5 minutes on two cores
        steps_per_save=500,
        steps_per_eval_batch=0,
        steps_per_eval_image=500,
        steps_per_eval_all_images=0,
        mixed_precision=False,
        pipeline=VanillaPipelineConfig(
            datamanager=ForegroundDataManagerConfig(
                dataparser=SDFStudioDataParserConfig(auto_orient=False, include_mono_prior=True),
                train_num_rays_per_batch=512,
                eval_num_rays_per_batch=512,
            ),
            model=small_model(),
        ),
        optimizers={"fields": _optimizer(2e-3), "proposal_networks": _optimizer(1e-2)},
        vis="viewer+tensorboard",
        viewer=ViewerConfig(num_rays_per_chunk=1 << 12, quit_on_train_completion=True),
        logging=LoggingConfig(steps_per_log=10),
    ),
    description="Baseline: nerfstudio's neus-facto, small enough for a CPU, on a scene from `pmni convert`.",
)
