# SPDX-License-Identifier: Apache-2.0
"""Foreground masks of sdfstudio's format: nerfstudio's losses use them ("fg_mask"), but its datasets do not read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Type

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.sdf_dataset import SDFDataset
from nerfstudio.utils.io import load_from_json

from pmni_nerfstudio.data.images import read_mask
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.export.sdfstudio import META

MASKS_KEY = "foreground_masks"


class ForegroundDataset(SDFDataset):
    """nerfstudio's SDF dataset with masks: items also contain "fg_mask" (H, W, 1), 1 on the object and 0 elsewhere."""

    exclude_batch_keys_from_device = SDFDataset.exclude_batch_keys_from_device + ["fg_mask"]

    def get_metadata(self, data: Dict) -> Dict:
        """Depth, normals and mask of a view."""
        metadata = super().get_metadata(data)
        mask = read_mask(self.metadata[MASKS_KEY][data["image_idx"]])
        metadata["fg_mask"] = torch.from_numpy(mask).float()[..., None]
        return metadata


@dataclass
class ForegroundDataManagerConfig(VanillaDataManagerConfig):
    """nerfstudio's data manager with the foreground masks of sdfstudio's format."""

    _target: Type = field(default_factory=lambda: ForegroundDataManager)
    """Target class to instantiate."""


class ForegroundDataManager(VanillaDataManager[ForegroundDataset]):
    """Data manager that passes the paths of the masks to its datasets."""

    config: ForegroundDataManagerConfig

    def __init__(self, config: ForegroundDataManagerConfig, *args, **kwargs) -> None:
        folder = Path(config.data or config.dataparser.data)
        with exit_on_error():
            self.masks = _mask_files(folder)
        super().__init__(config, *args, **kwargs)

    def create_train_dataset(self) -> ForegroundDataset:
        """Dataset of the training views."""
        return self._dataset(self.train_dataparser_outputs)

    def create_eval_dataset(self) -> ForegroundDataset:
        """Dataset of the evaluation views."""
        return self._dataset(self.dataparser.get_dataparser_outputs(split=self.test_split))

    def _dataset(self, outputs: DataparserOutputs) -> ForegroundDataset:
        outputs.metadata[MASKS_KEY] = [self.masks[image] for image in outputs.image_filenames]
        return ForegroundDataset(outputs, self.config.camera_res_scale_factor)


def _mask_files(folder: Path) -> Dict[Path, Path]:
    """Paths of the masks by image, of a scene in sdfstudio's format.

    Raises:
        PmniError: The folder is not in that format, or a frame has no mask.
    """
    if not (folder / META).is_file():
        raise PmniError(
            f"{folder / META}: does not exist; write it with `pmni convert SCENE --to sdfstudio --output-dir {folder}`"
        )
    frames = load_from_json(folder / META)["frames"]
    if not all("foreground_mask" in frame for frame in frames):
        raise PmniError(f"{folder / META}: has frames without foreground_mask; write it again with `pmni convert`")
    return {folder / frame["rgb_path"]: folder / frame["foreground_mask"] for frame in frames}
