# SPDX-License-Identifier: Apache-2.0
"""A folder that `pmni eval` wrote, read back: everything that a page about a result is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pmni_nerfstudio.data.images import read_normals
from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.evaluation.evaluate import known_normals
from pmni_nerfstudio.evaluation.ground_truth import find_truth, given_poses
from pmni_nerfstudio.evaluation.record import METRICS, Record
from pmni_nerfstudio.export.cameras import POSES
from pmni_nerfstudio.export.maps import NORMALS
from pmni_nerfstudio.geometry.transforms import flip_y_and_z
from pmni_nerfstudio.training.trained_run import read_config

if TYPE_CHECKING:
    import trimesh
    from nerfstudio.engine.trainer import TrainerConfig

MESH = "mesh.ply"

_KEYS = ("scene", "config", "method", "units", "aligned", "similarity", "surface", "poses", "normals", "mesh", "views")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A result and its measures. What is not there is None: a result may be measured without scene, run or cameras."""

    folder: Path
    record: Record
    """What metrics.json holds."""
    measured: datetime
    """When that was written, local time."""

    @property
    def title(self) -> str:
        """Of a page about it: the scene's name, or the folder's."""
        return self.folder.resolve().name if self.record["scene"] is None else Path(self.record["scene"]).name

    @property
    def config_file(self) -> Path | None:
        """The run's config.yml, if it still exists."""
        path = self.record["config"]
        return Path(path) if path is not None and Path(path).is_file() else None

    @cached_property
    def config(self) -> TrainerConfig | None:
        """The run's settings.

        Raises:
            PmniError: the file is there and is no run's config.
        """
        return None if self.config_file is None else read_config(self.config_file)

    @cached_property
    def scene(self) -> Scene | None:
        """What the result was measured against, at the size of the rendered maps, if its folder still exists.

        Raises:
            PmniError: it is broken by now, or has other views.
        """
        if self.record["scene"] is None or not Path(self.record["scene"]).is_dir():
            return None
        parser: Any = getattr(getattr(getattr(self.config, "pipeline", None), "datamanager", None), "dataparser", None)
        scene = read_scene(
            self.record["scene"], getattr(parser, "normals_folder", None), getattr(parser, "scale_factor", 1.0)
        )
        if list(scene.names) != self.names:
            raise PmniError(
                f"{scene.root}: has other views by now than {self.folder / METRICS} tells of: measure again with pmni eval"
            )
        return scene

    @property
    def names(self) -> list[str]:
        """Of the N views."""
        return [view["name"] for view in self.record["views"]]

    @property
    def has_maps(self) -> bool:
        """Whether every view's rendered normals are there."""
        return bool(self.names) and all(self._map_file(name).is_file() for name in self.names)

    def rendered_normals(self, name: str) -> np.ndarray:
        """Normals (H, W, 3) of the result in a view, OpenCV camera axes, zero off the surface.

        Raises:
            PmniError: the map is missing or broken.
        """
        return flip_y_and_z(read_normals(self._map_file(name)))

    @cached_property
    def known_normals(self) -> np.ndarray | None:
        """Normals (N, H, W, 3) that the measures compare with, OpenCV camera axes: the inputs, or noise-free ones."""
        if self.scene is None:
            return None
        if self.record["normals"] is None or self.record["normals"]["against"] == "inputs":
            return self.scene.normals
        return known_normals(self.scene, find_truth(self.scene))[0]

    @cached_property
    def mesh(self) -> trimesh.Trimesh | None:
        """In the data's world and units, equal vertices shared.

        Raises:
            PmniError: the file is broken.
        """
        if not (self.folder / MESH).is_file():
            return None
        mesh = read_mesh(self.folder / MESH)
        mesh.merge_vertices()
        return mesh

    @cached_property
    def c2w(self) -> np.ndarray | None:
        """The result's poses (N, 4, 4), camera to the data's world, OpenCV axes.

        Raises:
            PmniError: the file is broken or has another number of views.
        """
        return read_poses(self.folder / POSES, len(self.names)) if (self.folder / POSES).is_file() else None

    @cached_property
    def given_c2w(self) -> np.ndarray | None:
        """The scene's own poses, likewise: what the method began with, if the scene has any."""
        return None if self.scene is None else given_poses(self.scene)

    def _map_file(self, name: str) -> Path:
        return self.folder / NORMALS / f"{name}.exr"


def read_outcome(folder: Path) -> Outcome:
    """Read the measures; everything else is read when it is asked for.

    Raises:
        PmniError: the folder or its metrics.json is missing or broken.
    """
    path = folder / METRICS
    if not path.is_file():
        raise PmniError(f"{path}: is missing: give the folder that `pmni eval --output-dir` wrote")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # lists in lists without end are no record either
        raise PmniError(f"{path}: can't be read ({one_line(error)}): write it again with pmni eval") from error
    lacking = [key for key in _KEYS if not isinstance(record, dict) or key not in record]
    if lacking:
        raise PmniError(f"{path}: lacks {', '.join(lacking)}: write it again with pmni eval")
    return Outcome(folder, record, datetime.fromtimestamp(path.stat().st_mtime))
