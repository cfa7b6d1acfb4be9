# SPDX-License-Identifier: Apache-2.0
"""The DiLiGenT-MV data set (Li et al., "Multi-view photometric stereo", TIP 2020), in the layout of its release.

mvpmsData/bearPNG/
  Calib_Results.mat                 KK; Rc_i, Tc_i: world (that of the mesh, in mm) to camera, views from 1
  mesh_Gt.ply
  view_01/mask.png
  view_01/Normal_gt.mat (or .png)   x right, y up, z towards the viewer
estNormal/                          normals of two photometric stereo methods: TIP19Li, PAMI16Park
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.camera_files import is_rigid
from pmni_nerfstudio.data.files import entries
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.matlab import read_mat
from pmni_nerfstudio.importers.source import Format, Frame, ImportOptions, Source

CALIBRATION = "Calib_Results.mat"
MESH = "mesh_Gt.ply"
_GROUND_TRUTH = ("Normal_gt.mat", "Normal_gt.png", "normal_gt.png")


def recognize(folder: Path) -> bool:
    """Whether a folder is an object of DiLiGenT-MV or holds such folders."""
    return bool(scenes(folder))


def scenes(folder: Path) -> dict[str, Path]:
    """Folders of the objects by name; "" if the folder is an object itself."""
    if (folder / CALIBRATION).is_file():
        return {"": folder}
    for root in (folder, folder / "mvpmsData"):
        found = {
            path.name.removesuffix("PNG"): path
            for path in (entries(root) if root.is_dir() else [])
            if (path / CALIBRATION).is_file()
        }
        if found:
            return found
    return {}


def read(folder: Path, options: ImportOptions) -> Source:
    """Read one object; world and millimeters are kept."""
    frames = []
    for name, (K, c2w) in read_cameras(folder).items():
        view = folder / name
        mask = view / "mask.png"
        normals = _normals(folder, view, _number(view), options.normals)
        frames.append(Frame(name, normals, K, mask if mask.is_file() else None, c2w=c2w))
    mesh = folder / MESH
    name = folder.name.removesuffix("PNG")
    return Source(f"DiLiGenT-MV, {name}", tuple(frames), "camera", mesh=mesh if mesh.is_file() else None)


def read_cameras(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Intrinsics (3, 3) and pose c2w (4, 4), in the object's world and with OpenCV axes, of each folder of a view.

    Raises:
        PmniError: There are no views, or the calibration is broken or lacks one of them.
    """
    path = folder / CALIBRATION
    arrays = read_mat(path)
    if arrays.get("KK", np.empty(0)).shape != (3, 3):
        raise SceneError(f"{path}: has no 3x3 matrix KK; take the file of the original data set")
    cameras = {}
    for view in entries(folder):
        number = _number(view)
        if not number or not view.is_dir():
            continue
        R, t = arrays.get(f"Rc_{number}"), arrays.get(f"Tc_{number}")
        if R is None or t is None or R.shape != (3, 3) or t.size != 3:
            raise SceneError(
                f"{path}: has no Rc_{number} (3x3) and Tc_{number} (3) for {view}; add them or remove the view"
            )
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = R.T, -R.T @ t.ravel()
        if not is_rigid(c2w):
            raise SceneError(
                f"{path}: Rc_{number} and Tc_{number} are not a rotation and translation; take the file of the "
                "original data set"
            )
        cameras[view.name] = (arrays["KK"], c2w)
    if not cameras:
        raise PmniError(f"{folder}: has no folders view_01, view_02 and so on; unpack the data set completely")
    return cameras


def _number(view: Path) -> str:
    """Number of a view's folder, or nothing if it is none."""
    found = re.fullmatch(r"view_0*(\d+)", view.name)
    return found[1] if found is not None else ""


def _normals(folder: Path, view: Path, number: str, method: str | None) -> Path:
    """Normal map of a view: the ground truth, or that of a photometric stereo method."""
    if method is None:
        found = next((view / name for name in _GROUND_TRUTH if (view / name).is_file()), None)
        if found is None:
            raise PmniError(
                f"{view}: has no Normal_gt.mat or Normal_gt.png; add one, or choose a method with --normals"
            )
        return found
    file = f"{folder.name}_Normal_{method}_view{number}.mat"
    for root in (folder.parent / "estNormal", folder.parent.parent / "estNormal", folder / "estNormal"):
        if (root / file).is_file():
            return root / file
    for suffix in (".exr", ".png", ".npy", ".mat"):
        if (view / f"{method}{suffix}").is_file():
            return view / f"{method}{suffix}"
    raise PmniError(f"{folder.parent.parent / 'estNormal' / file}: is missing; check --normals {method}")


DILIGENT_MV = Format(recognize, read, scenes)
