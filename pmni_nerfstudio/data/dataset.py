# SPDX-License-Identifier: Apache-2.0
"""nerfstudio dataset of the views of a split; normals and masks come from the scene in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.data.split_views import METADATA_KEY, split_views_of
from pmni_nerfstudio.geometry.normals import normals_to_rgb


class PmniDataset(InputDataset):
    """Views of a split.

    An item is a dictionary with `image_idx` (int, index in the split), `image` (H, W, 3) normals as RGB, `normal` (H, W, 3)
    float32 in OpenCV camera axes, `mask` (H, W, 1) bool, and `unknown` (H, W, 1) bool if the scene has unknown pixels.

    Attributes:
        scene: scene with all views.
        views: index in the scene of each view of the split.

    Args:
        dataparser_outputs: outputs of PmniDataParser.
        scene: scene of these outputs.
    """

    exclude_batch_keys_from_device = ["image"]

    def __init__(self, dataparser_outputs: DataparserOutputs, scene: Scene) -> None:
        super().__init__(dataparser_outputs)
        self.scene = scene
        self.views = split_views_of(dataparser_outputs.metadata).indices

    def change_scene(self, scene: Scene) -> None:
        """Take over the normals and intrinsics of a scene that otherwise is the same."""
        self.scene = scene
        chosen = list(self.views)
        K, normals = scene.K[chosen], scene.normals if len(chosen) == scene.num_views else scene.normals[chosen]
        self.metadata[METADATA_KEY] = replace(split_views_of(self.metadata), K=K, normals=normals)
        values = torch.from_numpy(K).to(self.cameras.fx)
        self.cameras.fx, self.cameras.fy = values[:, 0, 0, None], values[:, 1, 1, None]
        # nerfstudio's pixel centers are at 0.5.
        self.cameras.cx, self.cameras.cy = values[:, 0, 2, None] + 0.5, values[:, 1, 2, None] + 0.5

    @property
    def maps(self) -> Dict[str, Tensor]:
        """Maps of all views of the scene, (N, H, W, C), in the scene's own memory."""
        maps = {"normal": torch.from_numpy(self.scene.normals), "mask": torch.from_numpy(self.scene.masks)[..., None]}
        if self.scene.unknown is not None:
            maps["unknown"] = torch.from_numpy(self.scene.unknown)[..., None]
        return maps

    def get_metadata(self, data: Dict) -> Dict[str, Tensor]:
        """Maps of view `data["image_idx"]` of the split, (H, W, C)."""
        view = self.views[data["image_idx"]]
        maps = {key: maps[view] for key, maps in self.maps.items()}
        return {**maps, "normal": maps["normal"].float()}

    def get_image_float32(self, image_idx: int) -> Float[Tensor, "H W 3"]:
        """Normals of a view as RGB in [0, 1] (see `normals_to_rgb`)."""
        maps = self.get_metadata({"image_idx": image_idx})
        return normals_to_rgb(maps["normal"], maps["mask"])

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """Normals of a view as 8-bit RGB, (H, W, 3)."""
        return (self.get_image_float32(image_idx) * 255).round().to(torch.uint8).numpy()

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> Dict:
        """Dictionary of a view. The base class would read image and mask from their files again."""
        image = self.get_image_uint8(image_idx) if image_type == "uint8" else self.get_image_float32(image_idx)
        data = {"image_idx": image_idx, "image": image}
        data.update(self.get_metadata(data))
        return data
