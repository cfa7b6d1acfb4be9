# SPDX-License-Identifier: Apache-2.0
"""A result on disk: a folder written by `pmni eval`, `pmni export` or `pmni register`, or a mesh file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.data.images import read_normals
from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.data.scene import MASKS, Scene, read_scene
from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.evaluation.evaluate import reference_normals
from pmni_nerfstudio.evaluation.ground_truth import find_ground_truth, given_poses
from pmni_nerfstudio.evaluation.metrics_file import METRICS_FILE, Record
from pmni_nerfstudio.export.cameras import CAMERAS, POSES, TRANSFORMS, with_result_intrinsics
from pmni_nerfstudio.export.field_volume import FIELD_FILE, FieldVolume, read_field_volume
from pmni_nerfstudio.export.maps import NORMALS
from pmni_nerfstudio.export.registration import SURFACE
from pmni_nerfstudio.geometry.transforms import flip_y_and_z
from pmni_nerfstudio.training.trained_run import read_config

if TYPE_CHECKING:
    import trimesh
    from nerfstudio.engine.trainer import TrainerConfig

MESH_FILE = "mesh.ply"
MESH_FILES = (MESH_FILE, "mesh.obj", "mesh.stl", "mesh.glb", SURFACE)
"""Names of a result folder's mesh, in order of preference."""

_KEYS = ("scene", "config", "method", "units", "aligned", "similarity", "surface", "poses", "normals", "mesh", "views")


@dataclass(frozen=True, eq=False)
class StoredResult:
    """A result on disk, in the data's world and units. Its parts are read on first access; missing parts are None.

    Properties raise a PmniError if a file is present but invalid.
    """

    path: Path
    """Folder of the result, or file of its mesh."""
    record: Record = field(default_factory=dict)
    """Contents of metrics.json; empty unless `pmni eval` wrote the folder."""
    data: Path | None = None
    """Folder of the scene; None: the one that the result refers to."""
    normals_folder: str | None = None
    """Name of the scene's folder with the normal maps; None: the default one."""
    poses_file: Path | None = None
    """File of the poses; None: the one beside the mesh."""

    @property
    def folder(self) -> Path:
        """Folder that holds the mesh."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def title(self) -> str:
        """Name of the evaluated scene, or else of the folder or mesh file."""
        if self.record.get("scene") is not None:
            return Path(self.record["scene"]).name
        return self.path.resolve().name if self.path.is_dir() else self.path.name

    @property
    def evaluation_time(self) -> datetime:
        """Local time at which metrics.json was written."""
        return datetime.fromtimestamp((self.folder / METRICS_FILE).stat().st_mtime)

    @property
    def config_file(self) -> Path | None:
        """The run's config.yml, if it exists."""
        path = self.record.get("config")
        return Path(path) if path is not None and Path(path).is_file() else None

    @cached_property
    def config(self) -> TrainerConfig | None:
        """Configuration of the run."""
        return None if self.config_file is None else read_config(self.config_file)

    @cached_property
    def scene(self) -> Scene | None:
        """Scene of the result, with the result's intrinsics; if it was evaluated, at the resolution of the rendered maps."""
        if self.data is not None:
            scene = read_scene(self.data, self.normals_folder)
        else:
            scene = self._evaluated_scene() if self.record else self._exported_scene()
        return None if scene is None else with_result_intrinsics(scene, self.folder)

    def _evaluated_scene(self) -> Scene | None:
        if self.record["scene"] is None or not Path(self.record["scene"]).is_dir():
            return None
        parser: Any = getattr(getattr(getattr(self.config, "pipeline", None), "datamanager", None), "dataparser", None)
        normals_folder = self.record.get("normals_folder") or getattr(parser, "normals_folder", None)
        scene = read_scene(self.record["scene"], normals_folder, getattr(parser, "scale_factor", 1.0))
        if list(scene.names) != self.names:
            raise PmniError(
                f"{scene.root}: its views are not those of {self.folder / METRICS_FILE}; evaluate again with pmni eval"
            )
        return scene

    def _exported_scene(self) -> Scene | None:
        """Scene whose masks the folder's transforms.json refers to, if it exists."""
        transforms = self.path / TRANSFORMS
        if not transforms.is_file():
            return None
        try:
            mask = self.path / json.loads(transforms.read_text(encoding="utf-8"))["frames"][0]["mask_path"]
            mask = mask.resolve()
            exists = mask.is_file()
        except (OSError, ValueError, RecursionError, TypeError, KeyError, IndexError) as error:
            raise PmniError(f"{transforms}: can't be read ({one_line(error)}); export again, or give --data") from error
        return read_scene(mask.parent.parent, self.normals_folder) if exists and mask.parent.name == MASKS else None

    @property
    def names(self) -> list[str]:
        """Names of the N evaluated views."""
        return [view["name"] for view in self.record.get("views", ())]

    @property
    def has_maps(self) -> bool:
        """Whether rendered normal maps of all evaluated views exist."""
        return bool(self.names) and all(self._map_file(name).is_file() for name in self.names)

    def rendered_normals(self, name: str) -> np.ndarray:
        """Rendered normals (H, W, 3) of a view, OpenCV camera axes, zero off the surface."""
        return flip_y_and_z(read_normals(self._map_file(name)))

    @cached_property
    def reference_normals(self) -> np.ndarray | None:
        """Normals (N, H, W, 3) that the evaluation compared with, OpenCV camera axes: the inputs or the ground truth."""
        if self.scene is None:
            return None
        if self.record["normals"] is None or self.record["normals"]["against"] == "inputs":
            return self.scene.normals
        return reference_normals(self.scene, find_ground_truth(self.scene))[0]

    @cached_property
    def mesh_file(self) -> Path | None:
        """File of the mesh."""
        if not self.path.is_dir():
            return self.path
        return next((self.path / name for name in MESH_FILES if (self.path / name).is_file()), None)

    @cached_property
    def mesh(self) -> trimesh.Trimesh | None:
        """Mesh with coincident vertices merged."""
        if self.mesh_file is None:
            return None
        mesh = read_mesh(self.mesh_file)
        mesh.merge_vertices()
        return mesh

    @cached_property
    def field_volume(self) -> FieldVolume | None:
        """Signed distance field near the surface."""
        path = self.folder / FIELD_FILE
        return read_field_volume(path) if path.is_file() else None

    @cached_property
    def c2w(self) -> np.ndarray | None:
        """Poses (N, 4, 4) of the result, OpenCV axes; None as well if the number of views is unknown."""
        beside = (self.folder / name for name in (POSES, CAMERAS))
        file = self.poses_file or next((path for path in beside if path.is_file()), None)
        count = len(self.names) if self.scene is None else self.scene.num_views
        return read_poses(file, count) if file is not None and count else None

    @cached_property
    def given_c2w(self) -> np.ndarray | None:
        """Poses (N, 4, 4) given with the scene, OpenCV axes."""
        return None if self.scene is None else given_poses(self.scene)

    def _map_file(self, name: str) -> Path:
        return self.folder / NORMALS / f"{name}.exr"


def read_result(
    path: Path, *, data: Path | None = None, normals_folder: str | None = None, poses_file: Path | None = None
) -> StoredResult:
    """Open a result folder or mesh file; see the fields of `StoredResult` for the parameters.

    Raises:
        PmniError: The folder has an invalid metrics.json.
    """
    file = path / METRICS_FILE
    return StoredResult(path, _read_record(file) if file.is_file() else {}, data, normals_folder, poses_file)


def read_evaluated_result(folder: Path, data: Path | None = None) -> StoredResult:
    """Open a folder that `pmni eval` wrote.

    Args:
        folder: The folder.
        data: Where the evaluated scene is now; None: where it was.

    Raises:
        PmniError: The folder's metrics.json is missing or invalid.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        raise PmniError(f"{path}: is missing; give a folder that `pmni eval --output-dir` wrote")
    if data is not None and not data.is_dir():
        raise PmniError(f"{data}: does not exist; give the folder of the evaluated scene")
    result = read_result(folder)
    return result if data is None else replace(result, record=result.record | {"scene": str(data.resolve())})


def _read_record(path: Path) -> Record:
    again = "write it again with pmni eval"
    record = read_json_object(path, again)
    missing = [key for key in _KEYS if key not in record]
    if missing:
        raise PmniError(f"{path}: lacks {', '.join(missing)}; {again}")
    return record
