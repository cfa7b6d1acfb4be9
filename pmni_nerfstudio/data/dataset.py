# SPDX-License-Identifier: Apache-2.0
"""The views of a split as nerfstudio's dataset: normals and masks straight from the scene in memory."""

from __future__ import annotations

from typing import Dict, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.data.split_views import split_views_of
from pmni_nerfstudio.geometry.normals import normals_to_rgb


class PmniDataset(InputDataset):
    """Views of a split. An item is the dictionary that evaluation and the viewer read:

    `image_idx` (int, in the split), `image` (H, W, 3) normals as RGB, `normal` (H, W, 3) float32 in the camera's
    OpenCV axes, and `mask` (H, W, 1) bool.

    Args:
        dataparser_outputs: of PmniDataParser.
        scene: that they are of.
        scale_factor: must be 1; the data parser has a factor that takes the masks and cameras along.
    """

    exclude_batch_keys_from_device = ["image"]

    def __init__(self, dataparser_outputs: DataparserOutputs, scene: Scene, scale_factor: float = 1.0) -> None:
        if scale_factor != 1.0:
            raise ValueError(f"scale_factor: {scale_factor} is not 1; set PmniDataParserConfig.scale_factor instead")
        super().__init__(dataparser_outputs)
        self.scene = scene
        self.views = split_views_of(dataparser_outputs.metadata).indices

    @property
    def maps(self) -> Dict[str, Tensor]:
        """Maps of all views of the scene, (N, H, W, C) in the scene's own memory: what the sampler gathers from."""
        return {"normal": torch.from_numpy(self.scene.normals), "mask": torch.from_numpy(self.scene.masks)[..., None]}

    def get_metadata(self, data: Dict) -> Dict[str, Tensor]:
        """The maps of view `data["image_idx"]` of the split, (H, W, C)."""
        view = self.views[data["image_idx"]]
        maps = {key: maps[view] for key, maps in self.maps.items()}
        return {**maps, "normal": maps["normal"].float()}

    def get_image_float32(self, image_idx: int) -> Float[Tensor, "H W 3"]:
        """The view's normals as RGB, see `normals_to_rgb`."""
        maps = self.get_metadata({"image_idx": image_idx})
        return normals_to_rgb(maps["normal"], maps["mask"])

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """The same in 8 bits, (H, W, 3)."""
        return (self.get_image_float32(image_idx) * 255).round().to(torch.uint8).numpy()

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> Dict:
        """The view's dictionary; the base class would read image and mask from their files again."""
        image = self.get_image_uint8(image_idx) if image_type == "uint8" else self.get_image_float32(image_idx)
        data = {"image_idx": image_idx, "image": image}
        data.update(self.get_metadata(data))
        return data
