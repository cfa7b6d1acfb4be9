# SPDX-License-Identifier: Apache-2.0
"""A scene folder as nerfstudio's data parser: splits, cameras in nerfstudio's conventions, noise for experiments.

nerfstudio imports this module while its own data manager is half loaded: nothing here may import a trainer, a
pipeline or a data manager.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Optional, Tuple, Type

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.data.split_views import METADATA_KEY, select_views, split_indices
from pmni_nerfstudio.errors import SceneError, exit_on_error
from pmni_nerfstudio.geometry.camera_rings import object_distance, ring_c2w
from pmni_nerfstudio.geometry.pose_noise import perturb_poses
from pmni_nerfstudio.geometry.transforms import nerfstudio_from_opencv, scale_of


@dataclass
class PmniDataParserConfig(DataParserConfig):
    """A folder of normal maps, masks and cameras."""

    _target: Type = field(default_factory=lambda: PmniDataParser)
    """Target class to instantiate."""
    data: Path = Path()
    """The scene's folder."""
    normals_folder: Optional[str] = None
    """Name of the folder with the normal maps, where the scene has several."""
    scale_factor: float = 1.0
    """Factor on the size of the maps: 0.5 halves both sides; intrinsics follow."""
    exclude_views: Tuple[int, ...] = ()
    """Views held out of training, by index from 0 in the order of the file names; evaluation then uses these."""
    initial_poses: Literal["file", "ring"] = "file"
    """Where poses begin: as the scene's file has them, or evenly on a ring about the object that fits the masks (as
    PMNI does). Scenes without poses are registered from nothing, or begin on the ring if it is asked for."""
    ring_elevation_deg: float = 20.0
    """Of the ring's cameras above the object."""
    ring_clockwise: bool = False
    """Whether the views go round clockwise, as seen from above."""
    pose_noise_rotation_deg: float = 0.0
    """For experiments: turns each camera about the object by an angle of this root mean square, in degrees."""
    pose_noise_translation: float = 0.0
    """For experiments: shifts each camera along each axis by this standard deviation, in radii of the scene."""
    pose_noise_seed: int = 0
    """Seed of the pose noise."""


@dataclass
class PmniDataParser(DataParser):
    """Reads the scene once and serves its splits. Mistakes in the data end the program with one line."""

    config: PmniDataParserConfig

    @cached_property
    def scene(self) -> Scene:
        """The scene, read at first use; its warnings are printed then.

        Raises:
            SceneError: something in the folder is missing or wrong.
        """
        scene = read_scene(self.config.data, self.config.normals_folder, self.config.scale_factor)
        for warning in scene.warnings:
            CONSOLE.print(f"[bold yellow]Warning: {escape(warning)}", soft_wrap=True)
        return scene

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Optional[dict]) -> DataparserOutputs:
        with exit_on_error():
            return self.outputs(split)

    def outputs(self, split_name: str) -> DataparserOutputs:
        """What nerfstudio trains ("train") or evaluates ("val", "test") on.

        Cameras are in the unit-sphere world. Those of training views say which they are: `metadata["cam_idx"]` (n, 1),
        the index in the train split, which slices and rays of them keep; held-out views have no such entry.

        Raises:
            SceneError: as `scene`, or views are held out of a scene without poses.
            PmniError: views excluded that are not there, or all of them.
        """
        scene = self.scene
        train, held_out = split_indices(scene, self.config.exclude_views)
        ring = self.config.initial_poses == "ring"
        if (scene.c2w is None or ring) and held_out:
            raise SceneError(
                f"{scene.root}: no camera poses are known, so that no views can be held out: drop exclude-views"
            )
        is_train = split_name == "train" or not held_out
        # Without poses, cameras stand where they might: the model registers the views before it trains.
        c2w = self._ring() if scene.c2w is None or ring else scene.c2w
        if is_train:
            c2w = perturb_poses(
                c2w,
                self.config.pose_noise_rotation_deg,
                self.config.pose_noise_translation,
                np.random.default_rng(self.config.pose_noise_seed),
            )
        split = select_views(scene, train if is_train else held_out, c2w, has_poses=ring or scene.c2w is not None)
        transform, scale = unit_from_world(scene.world_from_unit)
        images = scene.normal_files if scene.image_files is None else scene.image_files
        return DataparserOutputs(
            image_filenames=[images[view] for view in split.indices],
            mask_filenames=[scene.mask_files[view] for view in split.indices],
            cameras=nerfstudio_cameras(split.K, split.c2w, scene.width, scene.height, cam_idx=is_train),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
            metadata={METADATA_KEY: split},
            dataparser_transform=torch.from_numpy(transform).float(),
            dataparser_scale=scale,
        )

    def _ring(self) -> Float[np.ndarray, "n 4 4"]:
        scene, config = self.scene, self.config
        distance = object_distance(scene.K, scene.masks)
        return ring_c2w(scene.num_views, distance, config.ring_elevation_deg, config.ring_clockwise)


def nerfstudio_cameras(
    K: Float[np.ndarray, "n 3 3"], c2w: Float[np.ndarray, "n 4 4"], width: int, height: int, cam_idx: bool
) -> Cameras:
    """Pinholes in nerfstudio's conventions.

    Args:
        K: intrinsics in pixels, pixel centres at integers.
        c2w: camera-to-world, OpenCV axes.
        width: of the maps, in pixels.
        height: of the maps, in pixels.
        cam_idx: whether to number the cameras in `metadata["cam_idx"]`; otherwise the metadata is empty.
    """
    intrinsics = torch.from_numpy(K).float()
    return Cameras(
        camera_to_worlds=nerfstudio_from_opencv(c2w),
        fx=intrinsics[:, 0, 0, None],
        fy=intrinsics[:, 1, 1, None],
        cx=intrinsics[:, 0, 2, None] + 0.5,  # nerfstudio counts from the pixel's corner
        cy=intrinsics[:, 1, 2, None] + 0.5,
        width=width,
        height=height,
        camera_type=CameraType.PERSPECTIVE,
        metadata={"cam_idx": torch.arange(len(c2w))[:, None]} if cam_idx else {},
    )


def unit_from_world(world_from_unit: Float[np.ndarray, "4 4"]) -> Tuple[Float[np.ndarray, "3 4"], float]:
    """nerfstudio's way from the data's world to the unit sphere: unit = scale * (transform @ world).

    Args:
        world_from_unit: similarity, may turn.

    Returns:
        transform: rotation and shift, (3, 4).
        scale: unit-sphere units per unit of the world.
    """
    size = scale_of(world_from_unit)
    rotation = world_from_unit[:3, :3].T / size
    return np.column_stack([rotation, -rotation @ world_from_unit[:3, 3]]), float(1 / size)


pmni_data = DataParserSpecification(
    config=PmniDataParserConfig(),
    description="Folder of surface normal maps, masks and cameras in the layout of SuperNormal and PMNI.",
)
