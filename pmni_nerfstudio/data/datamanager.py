# SPDX-License-Identifier: Apache-2.0
"""nerfstudio data manager: batches of patches for training and whole views for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Literal, Optional, Sequence, Tuple, Type, Union, cast

import numpy as np
import torch
import tyro
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.data.utils.nerfstudio_collate import nerfstudio_collate
from torch import Tensor

from pmni_nerfstudio.allocator import keep_freed_memory
from pmni_nerfstudio.data.close_ups import close_ups_among
from pmni_nerfstudio.data.dataparser import PmniDataParser, PmniDataParserConfig
from pmni_nerfstudio.data.dataset import PmniDataset
from pmni_nerfstudio.data.patch_sampler import PatchSampler, PatchSamplerConfig, PixelPools, grouped_pools
from pmni_nerfstudio.data.ray_generator import PatchRayGenerator
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import exit_on_error
from pmni_nerfstudio.geometry.cameras import corrected_intrinsics
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.geometry.reflectance_bias import ReflectanceBias


@dataclass
class PmniDataManagerConfig(VanillaDataManagerConfig):
    """Configuration of the data manager: the scene and the composition of batches."""

    _target: Type = field(default_factory=lambda: PmniDataManager)
    """Target class to instantiate."""
    # The concrete class instead of nerfstudio's union of all data parsers, none of which provides normals. This makes
    # its flags available as --pipeline.datamanager.dataparser.exclude-views.
    dataparser: PmniDataParserConfig = field(default_factory=PmniDataParserConfig)
    """Data parser of the scene folder."""
    train_num_rays_per_batch: int = 2048
    """Rays per training batch, rounded down to whole patches."""
    eval_num_rays_per_batch: int = 2048
    """Rays per evaluation batch, rounded down to whole patches."""
    pixel_sampler: PatchSamplerConfig = field(default_factory=PatchSamplerConfig)
    """Sampler of the patches of a batch."""

    # Hidden: settings of nerfstudio's image caches, which are not used, and of sizes that are set elsewhere (patch size
    # in pixel_sampler, map size in dataparser).
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
    """Data manager that samples batches directly from the maps of the scene, without copies or caches.

    A batch has `indices` (R, 3) int64: view in the split, row, column; `normal` (R, 3) in OpenCV camera axes; `mask`
    (R, 1); `image` (R, 3), the normals as RGB; and `unknown` (R, 1) if the scene has unknown pixels. All but the indices
    are float32.
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
        keep_freed_memory()
        self._given_K: Optional[np.ndarray] = None
        self._removed_bias = ReflectanceBias()
        self._pools: Dict[Tuple[int, ...], PixelPools] = {}
        with exit_on_error():
            super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)

    @property
    def _scene(self) -> Scene:
        assert isinstance(self.dataparser, PmniDataParser)
        return self.dataparser.scene

    def create_train_dataset(self) -> PmniDataset:
        """Dataset of the training views."""
        return PmniDataset(self.train_dataparser_outputs, self._scene)

    def create_eval_dataset(self) -> PmniDataset:
        """Dataset of the held-out views, or of the training views if none are held out."""
        return PmniDataset(self.dataparser.get_dataparser_outputs(split=self.test_split), self._scene)

    def setup_train(self) -> None:
        """Create the pixel sampler and ray generator of the train split."""
        self.train_pixel_sampler = self._get_pixel_sampler(self.train_dataset, self.config.train_num_rays_per_batch)
        self.train_ray_generator = self._ray_generator(self.train_dataset)

    def draw_from(self, places: Sequence[int]) -> None:
        """Restrict training batches to some views from now on.

        Args:
            places: indices of these views in the train split.
        """
        config, scene, views = self.config.pixel_sampler, self.train_dataset.scene, self.train_dataset.views
        masks, groups = scene.masks, _groups(scene, [views[i] for i in places])
        pools = grouped_pools(masks, groups, config.patch_size, config.band_px, scene.unknown)
        self.train_pixel_sampler = config.setup(
            masks=masks,
            views=views,
            num_rays_per_batch=self.config.train_num_rays_per_batch,
            pools=pools,
            groups=groups,
        )

    def correct_views(
        self,
        bias: ReflectanceBias,
        focal_factor: float,
        shift_px: Tuple[float, float],
        refined: Optional[Float[np.ndarray, "p 3"]] = None,
    ) -> None:
        """Correct the normals and intrinsics of all views from the given ones; repeated calls do not add up.

        Args:
            bias: reflectance bias to remove from the normals; the same in every call.
            focal_factor: factor on the focal lengths.
            shift_px: shift of the principal points along x and y, in pixels.
            refined: normals of the training views' p pixels with a normal, which replace the given ones without the bias.
        """
        assert isinstance(self.dataparser, PmniDataParser)
        if self._given_K is None:
            self._given_K = self._scene.K
        K = corrected_intrinsics(self._given_K, focal_factor, np.array(shift_px))
        normals = self._normals_without(bias)
        if refined is not None:
            normals, count = normals.copy(), 0
            for view in self.train_dataset.views:
                valid = self._scene.valid[view]
                normals[view][valid] = refined[count : count + valid.sum()]
                count += int(valid.sum())
        self.dataparser.scene = replace(self._scene, K=K, normals=normals)
        for dataset in (self.train_dataset, self.eval_dataset):
            dataset.change_scene(self._scene)
        # Copies of the cameras on the device, which inference does without.
        if self.train_pixel_sampler is not None:
            self.train_ray_generator = self._ray_generator(self.train_dataset)
        if self.eval_pixel_sampler is not None:
            self.eval_ray_generator = self._ray_generator(self.eval_dataset)
            self._load_eval_views()

    def _normals_without(self, bias: ReflectanceBias) -> Float[np.ndarray, "n h w 3"]:
        """Normals of the scene without a reflectance bias."""
        scene = self._scene
        if bias == self._removed_bias:
            return scene.normals
        assert self._removed_bias.is_zero and self._given_K is not None
        self._removed_bias = bias
        normals = np.empty_like(scene.normals)
        for view, K in enumerate(self._given_K):
            normals[view] = bias.removed(scene.normals[view], scene.valid[view], K)
        return normals

    def setup_eval(self) -> None:
        """Create the pixel sampler, ray generator and data loaders of the eval split."""
        self.eval_pixel_sampler = self._get_pixel_sampler(self.eval_dataset, self.config.eval_num_rays_per_batch)
        self.eval_ray_generator = self._ray_generator(self.eval_dataset)
        self._load_eval_views()

    def _load_eval_views(self) -> None:
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=self.device)

    def next_train(self, step: int) -> Tuple[RayBundle, Dict[str, Tensor]]:
        """Next training batch and its rays, on the device."""
        self.train_count += 1
        assert self.train_pixel_sampler is not None
        return self._next(self.train_pixel_sampler, self.train_ray_generator, self.train_dataset)

    def next_eval(self, step: int) -> Tuple[RayBundle, Dict[str, Tensor]]:
        """Next evaluation batch and its rays, on the device."""
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
            unknown=dataset.scene.unknown,
            groups=_groups(dataset.scene, dataset.views),
        )
        self._pools[dataset.views] = sampler.pools  # shared by both splits if no views are held out
        return sampler

    def _ray_generator(self, dataset: PmniDataset) -> PatchRayGenerator:
        return PatchRayGenerator(dataset.cameras.to(self.device), self.config.pixel_sampler.patch_size)


def _groups(scene: Scene, views: Sequence[int]) -> List[List[int]]:
    """Views of the whole object and close-ups, apart: these have far more pixels for their part of the surface."""
    close_ups = close_ups_among(scene, scene.c2w)
    groups = [[view for view in views if close_ups[view] == kind] for kind in (False, True)]
    return [group for group in groups if group]
