# SPDX-License-Identifier: Apache-2.0
"""Batches of patches for training and whole views for evaluation, read in place from the scene in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Literal, Optional, Sequence, Tuple, Type, Union, cast

import torch
import tyro
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.data.utils.nerfstudio_collate import nerfstudio_collate
from torch import Tensor

from pmni_nerfstudio.data.dataparser import PmniDataParser, PmniDataParserConfig
from pmni_nerfstudio.data.dataset import PmniDataset
from pmni_nerfstudio.data.patch_sampler import PatchSampler, PatchSamplerConfig, PixelPools, build_pools
from pmni_nerfstudio.data.ray_generator import PatchRayGenerator
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import exit_on_error
from pmni_nerfstudio.geometry.normals import normals_to_rgb


@dataclass
class PmniDataManagerConfig(VanillaDataManagerConfig):
    """Where the data come from and what a batch is."""

    _target: Type = field(default_factory=lambda: PmniDataManager)
    """Target class to instantiate."""
    # The concrete class, not nerfstudio's union of all parsers: no other parser brings normals, and so the parser's
    # flags are the method's own (--pipeline.datamanager.dataparser.exclude-views).
    dataparser: PmniDataParserConfig = field(default_factory=PmniDataParserConfig)
    """The scene's folder and how to read it."""
    train_num_rays_per_batch: int = 2048
    """Rays per training batch, rounded down to whole patches."""
    eval_num_rays_per_batch: int = 2048
    """Rays per evaluation batch, rounded down to whole patches."""
    pixel_sampler: PatchSamplerConfig = field(default_factory=PatchSamplerConfig)
    """Which patches a batch holds."""

    # nerfstudio's settings of image caches, which there are none of here, and settings that have their one place
    # elsewhere: the patch's size in pixel_sampler, the maps' size in dataparser.
    masks_on_gpu: tyro.conf.Suppress[bool] = False
    """Unused."""
    images_on_gpu: tyro.conf.Suppress[bool] = False
    """Unused."""
    train_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    """Unused: batches are drawn from all views."""
    train_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    """Unused."""
    eval_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    """Unused: batches are drawn from all views."""
    eval_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    """Unused."""
    eval_image_indices: tyro.conf.Suppress[Optional[Tuple[int, ...]]] = (0,)
    """Unused."""
    collate_fn: tyro.conf.Suppress[Callable[[Any], Any]] = cast(Any, staticmethod(nerfstudio_collate))
    """Unused."""
    camera_res_scale_factor: tyro.conf.Suppress[float] = 1.0
    """Unused: see dataparser.scale_factor."""
    patch_size: tyro.conf.Suppress[int] = 1
    """Unused: see pixel_sampler.patch_size."""


class PmniDataManager(VanillaDataManager[PmniDataset]):
    """Draws training batches from the scene's maps in place: no view is copied or cached as floats.

    A batch has `indices` (R, 3) int64: view in the split, row, column; `normal` (R, 3) in the camera's OpenCV axes;
    `mask` (R, 1); `image` (R, 3), the normals as RGB. All but the indices are float32.
    """

    config: PmniDataManagerConfig
    train_pixel_sampler: Optional[PatchSampler] = None
    eval_pixel_sampler: Optional[PatchSampler] = None

    def __init__(
        self,
        config: PmniDataManagerConfig,
        device: Union[torch.device, str] = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        self._pools: Dict[Tuple[int, ...], PixelPools] = {}
        with exit_on_error():
            super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)

    @property
    def _scene(self) -> Scene:
        assert isinstance(self.dataparser, PmniDataParser)
        return self.dataparser.scene

    def create_train_dataset(self) -> PmniDataset:
        """The training views."""
        return PmniDataset(self.train_dataparser_outputs, self._scene)

    def create_eval_dataset(self) -> PmniDataset:
        """The held-out views, or the training views where none are held out."""
        return PmniDataset(self.dataparser.get_dataparser_outputs(split=self.test_split), self._scene)

    def setup_train(self) -> None:
        """Builds the sampler's pools and the rays' matrices."""
        self.train_pixel_sampler = self._get_pixel_sampler(self.train_dataset, self.config.train_num_rays_per_batch)
        self.train_ray_generator = self._ray_generator(self.train_dataset)

    def draw_from(self, places: Sequence[int]) -> None:
        """Training batches are drawn from these views alone from now on, by their places in the split."""
        config, masks, views = self.config.pixel_sampler, self.train_dataset.scene.masks, self.train_dataset.views
        pools = build_pools(masks, [views[i] for i in places], config.patch_size, config.band_px)
        rays = self.config.train_num_rays_per_batch
        self.train_pixel_sampler = config.setup(masks=masks, views=views, num_rays_per_batch=rays, pools=pools)

    def setup_eval(self) -> None:
        """The same for the eval split, and nerfstudio's loaders of whole views, which cache nothing."""
        self.eval_pixel_sampler = self._get_pixel_sampler(self.eval_dataset, self.config.eval_num_rays_per_batch)
        self.eval_ray_generator = self._ray_generator(self.eval_dataset)
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=self.device)

    def next_train(self, step: int) -> Tuple[RayBundle, Dict[str, Tensor]]:
        """Rays and batch of the next training step, on the device."""
        self.train_count += 1
        assert self.train_pixel_sampler is not None
        return self._next(self.train_pixel_sampler, self.train_ray_generator, self.train_dataset)

    def next_eval(self, step: int) -> Tuple[RayBundle, Dict[str, Tensor]]:
        """The same of the eval split."""
        self.eval_count += 1
        assert self.eval_pixel_sampler is not None
        return self._next(self.eval_pixel_sampler, self.eval_ray_generator, self.eval_dataset)

    def _next(
        self, sampler: PatchSampler, ray_generator: PatchRayGenerator, dataset: PmniDataset
    ) -> Tuple[RayBundle, Dict[str, Tensor]]:
        batch = {key: value.to(self.device) for key, value in sampler.sample(dataset.maps).items()}
        batch["image"] = normals_to_rgb(batch["normal"], batch["mask"])
        return ray_generator(batch["indices"]), batch

    def _get_pixel_sampler(self, dataset: PmniDataset, num_rays_per_batch: int) -> PatchSampler:
        config = self.config.pixel_sampler
        sampler: PatchSampler = config.setup(
            masks=dataset.scene.masks,
            views=dataset.views,
            num_rays_per_batch=num_rays_per_batch,
            pools=self._pools.get(dataset.views),
        )
        self._pools[dataset.views] = sampler.pools  # without held-out views both splits draw from the same
        return sampler

    def _ray_generator(self, dataset: PmniDataset) -> PatchRayGenerator:
        return PatchRayGenerator(dataset.cameras.to(self.device), self.config.pixel_sampler.patch_size)
