# SPDX-License-Identifier: Apache-2.0
"""`ns-train neus-facto-small`: nerfstudio's neus-facto, small, on a machine with neither tinycudann nor a network.

As nerfstudio ships it, it runs on no CPU: its field asks for tinycudann's hash encoding, and its model fetches the weights
of an LPIPS network. Here the field's encoding is nerfstudio's own PyTorch one, and LPIPS is left out. Two more things differ:
masks are learnt from, which nerfstudio's data sets leave unread, and normals only where there are some (off the object
the stock loss would pull them towards zero vectors). The rest of the method is nerfstudio's code.
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
from pmni_nerfstudio.threads import settle_threads
from pmni_nerfstudio.training.lr_schedule import FusedAdamConfig, RunFractionSchedulerConfig, set_run_length


@dataclass
class TorchSDFFieldConfig(SDFFieldConfig):
    """nerfstudio's SDF field with its PyTorch hash encoding."""

    _target: Type = field(default_factory=lambda: TorchSDFField)
    """Target class to instantiate."""
    encoding_type: Literal["hash", "periodic", "tensorf_vm"] = "periodic"
    """Of no effect here: anything but "hash", by which nerfstudio means tinycudann's."""
    smoothstep: bool = False
    """Of no effect here: the PyTorch encoding interpolates linearly."""


class TorchHashGrid(HashEncoding):
    """nerfstudio's PyTorch encoding, that says its width as tinycudann's does. It interpolates linearly only."""

    @property
    def n_output_dims(self) -> int:
        """Features of a point."""
        return self.get_out_dim()


class TorchSDFField(SDFField):
    """The stock field, but for its encoding."""

    config: TorchSDFFieldConfig

    def initialize_geo_layers(self) -> None:
        """Called by the stock constructor where its encoding has to be there: builds that first."""
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
    """What nerfstudio's surface models share, without a background model and without LPIPS.

    It stands between NeuS and SurfaceModel in the order of `NeuSFactoSmall`'s parents, so that NeuS calls it in the place
    of SurfaceModel, which builds the LPIPS network and can't be told not to.
    """

    def populate_modules(self) -> None:
        """Field, collider, renderers, losses and metrics, as SurfaceModel names them."""
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
        self.lpips = _no_lpips

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """Of the field alone: there is no background."""
        return {"fields": list(self.field.parameters())}

    def get_loss_dict(
        self, outputs: Dict[str, Any], batch: Dict[str, Any], metrics_dict: Optional[Dict[str, Any]] = None
    ) -> Dict[str, Tensor]:
        """nerfstudio's losses; that of the normals is over the rays whose normal is known."""
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
        """nerfstudio's, without LPIPS."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        del metrics["lpips"]
        return metrics, images


def _no_lpips(image: Tensor, rgb: Tensor) -> float:
    """In the place of the network that would have to be fetched; its value is dropped."""
    del image, rgb
    return float("nan")


@dataclass
class NeuSFactoSmallConfig(NeuSFactoModelConfig):
    """neus-facto for a CPU."""

    _target: Type = field(default_factory=lambda: NeuSFactoSmall)
    """Target class to instantiate."""
    background_model: Literal["none"] = "none"
    """There is none: what is off the object is the background's colour."""
    cos_anneal_fraction: float = 0.5
    """Of the run, over which NeuS lets go of its softened angle between ray and surface (stock: 50,000 steps)."""
    proposal_anneal_fraction: float = 0.1
    """Of the run, over which the proposals' weights are annealed (stock: 1,000 steps)."""


class NeuSFactoSmall(NeuSFactoModel, ForegroundSurfaceModel):
    """nerfstudio's neus-facto whose schedules go by the fraction of the run."""

    config: NeuSFactoSmallConfig

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        """nerfstudio's, after the schedules are told how long the run is."""
        trainer, optimizers = training_callback_attributes.trainer, training_callback_attributes.optimizers
        if trainer is not None:
            steps = trainer.config.max_num_iterations
            self.anneal_end = max(1, round(self.config.cos_anneal_fraction * steps))
            self.config.proposal_weights_anneal_max_num_iters = max(
                1, round(self.config.proposal_anneal_fraction * steps)
            )
            if optimizers is not None:
                set_run_length(optimizers.schedulers, steps)
            if trainer.device == "cpu":
                settle_threads()
        return super().get_training_callbacks(training_callback_attributes)


def small_model() -> NeuSFactoSmallConfig:
    """neus-facto with narrower networks, fewer samples along a ray and smaller hash grids than nerfstudio's."""
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
    # nerfstudio's own schedulers save numpy's numbers, which torch's safe loading of checkpoints refuses
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
    description="nerfstudio's neus-facto, small, for a CPU, on a scene from `pmni convert`: to compare with.",
)
