# SPDX-License-Identifier: Apache-2.0
"""DiLiGenT-MV as it is released (Li et al., "Multi-view photometric stereo", TIP 2020): mvpmsData/bearPNG and so on.

    Calib_Results.mat            KK, and Rc_i, Tc_i: world (the mesh's, in mm) to camera of view i, counted from 1
    mesh_Gt.ply
    view_01/mask.png, Normal_gt.mat (or Normal_gt.png)   x right, y up, z to the viewer

Beside mvpmsData, estNormal has the normals of two photometric stereo methods, which --normals names: TIP19Li, PAMI16Park.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.files import entries
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.matlab import read_mat
from pmni_nerfstudio.importers.source import Format, Frame, Options, Prepared

CALIBRATION = "Calib_Results.mat"
_TRUE = ("Normal_gt.mat", "Normal_gt.png", "normal_gt.png")


def recognise(folder: Path) -> bool:
    """Whether it is an object of DiLiGenT-MV, or a folder of such."""
    return bool(parts(folder))


def parts(folder: Path) -> dict[str, Path]:
    """The objects by their names: "" if the folder is one itself."""
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


def read(folder: Path, options: Options) -> Prepared:
    """One object; its frames and millimetres as they are."""
    path = folder / CALIBRATION
    arrays = read_mat(path)
    if arrays.get("KK", np.empty(0)).shape != (3, 3):
        raise SceneError(f"{path}: has no 3x3 matrix KK: check that it is the file that the data set came with")
    frames = []
    for view in entries(folder):
        number = re.fullmatch(r"view_0*(\d+)", view.name)
        if number is None or not view.is_dir():
            continue
        R, t = arrays.get(f"Rc_{number[1]}"), arrays.get(f"Tc_{number[1]}")
        if R is None or t is None or R.shape != (3, 3) or t.size != 3:
            raise SceneError(
                f"{path}: has no Rc_{number[1]} (3x3) and Tc_{number[1]} (3) for {view}: give each view its own"
            )
        if not np.allclose(R @ R.T, np.eye(3), atol=1e-3) or not np.linalg.det(R) > 0 or not np.isfinite(t).all():
            raise SceneError(f"{path}: Rc_{number[1]} and Tc_{number[1]} are no rotation and shift: check the file")
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = R.T, -R.T @ t.ravel()
        mask = view / "mask.png"
        normals = _normals(folder, view, number[1], options.normals)
        frames.append(Frame(view.name, normals, arrays["KK"], mask if mask.is_file() else None, c2w=c2w))
    if not frames:
        raise PmniError(f"{folder}: has no folder view_01, view_02 and so on: check that all of it was unpacked")
    mesh = folder / "mesh_Gt.ply"
    name = folder.name.removesuffix("PNG")
    return Prepared(f"DiLiGenT-MV, {name}", tuple(frames), "camera", mesh=mesh if mesh.is_file() else None)


def _normals(folder: Path, view: Path, number: str, method: str | None) -> Path:
    if method is None:
        found = next((view / name for name in _TRUE if (view / name).is_file()), None)
        if found is None:
            raise PmniError(f"{view}: has no Normal_gt.mat nor Normal_gt.png: add one, or name a method by --normals")
        return found
    file = f"{folder.name}_Normal_{method}_view{number}.mat"
    for root in (folder.parent / "estNormal", folder.parent.parent / "estNormal", folder / "estNormal"):
        if (root / file).is_file():
            return root / file
    for suffix in (".exr", ".png", ".npy", ".mat"):
        if (view / f"{method}{suffix}").is_file():
            return view / f"{method}{suffix}"
    raise PmniError(f"{folder.parent.parent / 'estNormal' / file}: is missing: check --normals {method}")


DILIGENT_MV = Format(recognise, read, parts)
