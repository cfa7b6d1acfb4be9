# SPDX-License-Identifier: Apache-2.0
"""Camera files: cameras_sphere.npz with projection matrices, and intrinsics.json with intrinsics only.

cameras_sphere.npz has the layout of IDR (Yariv et al., "Multiview Neural Surface Reconstruction by Disentangling Geometry
and Appearance", NeurIPS 2020), which NeuS, SuperNormal and PMNI share: `world_mat_i` = K [R | t] takes the world to pixels
(OpenCV axes, pixel centers at integers), and `scale_mat_i` takes the unit sphere, which contains the object, to the world.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import scipy.linalg

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.data.npz import read_npz, write_npz
from pmni_nerfstudio.data.packed_masks import Masks
from pmni_nerfstudio.data.unit_sphere import fitted_sphere
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.transforms import scale_of

_INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
LARGEST = 1e15
"""Upper bound on the magnitude of numbers in files, so that nothing overflows."""
_MATRIX_BYTES = 1 << 20
_IDENTITY = " (scale_mat is the identity, which is right only if the object lies within one unit of the world's origin)"


def read_cameras(
    path: str | os.PathLike[str], num_views: int, masks: Masks | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read and check cameras_sphere.npz. Each `world_mat_i` may have any nonzero overall factor.

    Args:
        path: .npz file.
        num_views: required number N of cameras, numbered from 0.
        masks: (N, H, W), true on the object. If given, a unit sphere is fitted to them where the file has none: every
            `scale_mat_i` is missing, or is the identity with the object elsewhere.

    Returns:
        K: (N, 3, 3) float64, intrinsics in pixels, pixel centers at integers, K[2, 2] = 1.
        c2w: (N, 4, 4) float64, camera to unit-sphere world, OpenCV axes.
        world_from_unit: (4, 4) float64, a similarity: the scale_mat of the file, or the fitted one.

    Raises:
        SceneError: the file is broken, cameras are missing or too many, a matrix is not finite, singular or mirrored, the
            scale_mats differ or are not similarities, or a camera is inside the unit sphere or looks away from it.
    """
    path = Path(path)
    matrices = _read_matrices(path, num_views, scale_is_optional=masks is not None)
    world_from_unit = matrices["scale_mat_0"]
    _check_similarity(path, world_from_unit)
    for i in range(1, num_views):
        if not np.allclose(matrices[f"scale_mat_{i}"], world_from_unit, rtol=1e-5, atol=1e-5 * _norm(world_from_unit)):
            raise SceneError(f"{path}: scale_mat_{i} differs from scale_mat_0; all views need the same unit sphere")
    is_identity = np.allclose(world_from_unit, np.eye(4))
    if is_identity and masks is not None:
        K, c2w = _decompose(path, matrices, world_from_unit, num_views)
        fitted = fitted_sphere(K, c2w, masks)
        world_from_unit = world_from_unit if fitted is None else fitted
    K, c2w = _decompose(path, matrices, world_from_unit, num_views)
    cause = "" if not np.array_equal(world_from_unit, np.eye(4)) else _IDENTITY
    for i in range(num_views):
        is_negative = np.linalg.det(matrices[f"world_mat_{i}"][:3, :3]) < 0
        _check_pose(path, i, c2w[i], is_negative, cause)
    return K, c2w, world_from_unit


def warn_fitted_sphere(path: str | os.PathLike[str], world_from_unit: np.ndarray) -> list[str]:
    """Warn if the unit sphere that `read_cameras` returned is not that of the file."""
    arrays = read_npz(Path(path), re.compile(r"scale_mat_0").fullmatch, _MATRIX_BYTES)
    given = arrays.get("scale_mat_0")
    if given is not None and np.allclose(given, world_from_unit, rtol=1e-6):
        return []
    if given is None and np.array_equal(world_from_unit, np.eye(4)):
        return [
            f"{path}: has no scale_mat_i; the unit sphere around the world's origin is used, which holds the object"
        ]
    center, radius = world_from_unit[:3, 3], scale_of(world_from_unit)
    problem = "has no scale_mat_i" if given is None else "scale_mat_i is the identity, but the object is elsewhere"
    return [
        f"{path}: {problem}; the unit sphere was fitted to the masks: center ({center[0]:.4g}, {center[1]:.4g}, "
        f"{center[2]:.4g}), radius {radius:.4g}; write it into scale_mat_i to silence this"
    ]


def _decompose(
    path: Path, matrices: dict[str, np.ndarray], world_from_unit: np.ndarray, num_views: int
) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (N, 3, 3) and poses (N, 4, 4) in the unit-sphere world."""
    K, c2w = np.empty((num_views, 3, 3)), np.empty((num_views, 4, 4))
    for i in range(num_views):
        projection = matrices[f"world_mat_{i}"][:3] @ world_from_unit
        singular = np.linalg.svd(projection[:, :3], compute_uv=False)
        # If the 3x3 block is negligible beside the translation, the camera is at infinity.
        if singular[2] <= 1e-7 * singular[0] or singular[0] <= 1e-12 * _norm(projection):
            raise SceneError(f"{path}: world_mat_{i} is not invertible; it has to be K [R | t] of a pinhole camera")
        K[i], c2w[i] = decompose_projection(projection / singular[0])
    return K, c2w


def write_cameras(path: str | os.PathLike[str], K: np.ndarray, c2w: np.ndarray, world_from_unit: np.ndarray) -> None:
    """Write cameras_sphere.npz atomically.

    Args:
        path: .npz file.
        K: (N, 3, 3), intrinsics in pixels, pixel centers at integers.
        c2w: (N, 4, 4), camera to unit-sphere world, OpenCV axes.
        world_from_unit: (4, 4), similarity.

    Raises:
        ValueError: an array has a wrong shape.
    """
    if K.shape != (len(c2w), 3, 3) or c2w.shape[1:] != (4, 4) or world_from_unit.shape != (4, 4):
        raise ValueError(f"shapes do not match: K {K.shape}, c2w {c2w.shape}, world_from_unit {world_from_unit.shape}")
    # This factor makes the third row a unit vector in the data world, as in K [R | t].
    size = scale_of(world_from_unit)
    arrays = {}
    for i in range(len(c2w)):
        world_mat = np.eye(4)
        world_mat[:3] = size * K[i] @ (np.linalg.inv(c2w[i]) @ np.linalg.inv(world_from_unit))[:3]
        arrays[f"world_mat_{i}"] = world_mat
        arrays[f"scale_mat_{i}"] = np.asarray(world_from_unit, dtype=np.float64)
    write_npz(Path(path), arrays)


def read_intrinsics(path: str | os.PathLike[str]) -> tuple[np.ndarray, int, int]:
    """Read intrinsics.json, intrinsics shared by all views: nerfstudio's names, but pixel centers at integers.

    Returns:
        K (3, 3) float64, width, height.

    Raises:
        SceneError: the file is broken, or a value is missing or not a finite number.
    """
    path = Path(path)
    values = read_json_object(path, f"write it again with {', '.join(_INTRINSICS)}")
    for name in _INTRINSICS:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
            problem = "is missing" if name not in values else "is not a finite number"
            raise SceneError(f"{path}: {name} {problem}; give {', '.join(_INTRINSICS)}, in pixels")
    fx, fy, cx, cy, width, height = (float(values[name]) for name in _INTRINSICS)
    if not (width.is_integer() and height.is_integer()):
        raise SceneError(f"{path}: w and h are {width:g} and {height:g}; give whole numbers of pixels")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), int(width), int(height)


def write_intrinsics(path: str | os.PathLike[str], K: np.ndarray, width: int, height: int) -> None:
    """Write intrinsics.json, intrinsics K (3, 3) shared by all views, atomically."""
    values = (float(value) for value in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    write_json(path, dict(zip(_INTRINSICS, (*values, width, height))))


def is_rigid(matrix: np.ndarray) -> bool:
    """Whether a matrix (4, 4) of any numbers consists of a rotation and a translation."""
    R = matrix[:3, :3]
    if not (np.abs(matrix) < LARGEST).all():  # false for NaN
        return False
    return bool(np.abs(R @ R.T - np.eye(3)).max() < 1e-3 and np.linalg.det(R) > 0)


def decompose_projection(projection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decompose a projection matrix into intrinsics and pose (Hartley and Zisserman, 2nd ed., section 6.2.4).

    Args:
        projection: (3, 4), a nonzero multiple of K [R | t] whose left 3x3 block is invertible.

    Returns:
        K: (3, 3) upper triangular, positive diagonal, K[2, 2] = 1.
        c2w: (4, 4), camera to world, OpenCV axes.
    """
    # Only one of the two signs gives a proper rotation.
    projection = projection * np.sign(np.linalg.det(projection[:, :3]))
    K, rotation = scipy.linalg.rq(projection[:, :3])
    sign = np.sign(np.diag(K))
    K, rotation = K * sign, sign[:, None] * rotation
    c2w = np.eye(4)
    c2w[:3, :3] = rotation.T
    c2w[:3, 3] = -np.linalg.solve(projection[:, :3], projection[:, 3])
    return K / K[2, 2], c2w


def check_pinholes(
    path: str | os.PathLike[str], K: np.ndarray, width: int, height: int, sizes: np.ndarray | None = None
) -> list[str]:
    """Check that intrinsics K (N, 3, 3) are plausible for images of this size, or of sizes (N, 2), and without skew.

    Returns:
        At most one warning: a principal point outside the middle half of the image.

    Raises:
        SceneError: a focal length is not positive or implausible, a principal point is more than half an image size
            outside the image, or there is skew.
    """
    path = Path(path)
    warnings = []
    for i, k in enumerate(K):
        if sizes is not None:
            width, height = sizes[i]
        size = max(width, height)
        where = f"{path}: " if path.suffix == ".json" else f"{path}: world_mat_{i}: "
        fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
        if min(fx, fy) <= 0:
            raise SceneError(f"{where}focal length of {min(fx, fy):.4g} px; it has to be positive")
        if not 0.1 * size <= min(fx, fy) <= max(fx, fy) <= 1e4 * size:
            raise SceneError(
                f"{where}focal lengths of {fx:.4g} and {fy:.4g} px are implausible for a {width}x{height} image; "
                "give the intrinsics K in pixels"
            )
        if not (-0.5 * width <= cx <= 1.5 * width and -0.5 * height <= cy <= 1.5 * height):
            raise SceneError(
                f"{where}principal point ({cx:.4g}, {cy:.4g}) px is far outside of the {width}x{height} image; "
                "scale K to the size of the maps"
            )
        if abs(k[0, 1]) > 0.01 * fx:
            raise SceneError(f"{where}skew of {k[0, 1]:.4g} px; resample the maps to a camera without skew")
        if not warnings and not (0.25 * width <= cx <= 0.75 * width and 0.25 * height <= cy <= 0.75 * height):
            warnings.append(
                f"{where}principal point ({cx:.4g}, {cy:.4g}) px is far from the middle of {width}x{height}; "
                "check that the cameras belong to maps of this size"
            )
    return warnings


def warn_outside_sphere(path: str | os.PathLike[str], K: np.ndarray, c2w: np.ndarray, masks: Masks) -> list[str]:
    """Warn if most of a mask is outside of the image of the unit sphere, which should contain the object.

    This is not an error because poses may be rough.

    Args:
        path: camera file, for messages.
        K: (N, 3, 3), as returned by `read_cameras`.
        c2w: (N, 4, 4), as returned by `read_cameras`.
        masks: (N, H, W), true on the object.
    """
    centers = np.linalg.inv(c2w)[:, :3, 3]
    inside = []
    for k, center, mask in zip(K, centers, masks):
        y, x = np.nonzero(mask)
        every = max(1, len(y) // 1024)
        rays = pixel_directions(k, np.stack([x, y], axis=-1)[::every])
        # A ray intersects the sphere if its distance from the center is below 1.
        inside.append(((rays @ center) ** 2 > (rays**2).sum(axis=1) * (center @ center - 1)).mean())
    wrong = np.flatnonzero(np.array(inside) < 0.5)
    if not wrong.size:
        return []
    return [
        f"{path}: in {wrong.size} of {len(K)} views (first world_mat_{wrong[0]}) most of the mask is outside the image of "
        "the unit sphere; check that K belongs to maps of this size, and that the sphere of scale_mat contains the object"
    ]


def warn_small_or_same(path: str | os.PathLike[str], K: np.ndarray, c2w: np.ndarray, masks: Masks) -> list[str]:
    """Warn if cameras coincide or the object fills little of the unit sphere; reject inconsistent units.

    Args:
        path: camera file, for messages.
        K: (N, 3, 3), as returned by `read_cameras`.
        c2w: (N, 4, 4), as returned by `read_cameras`.
        masks: (N, H, W), true on the object.

    Raises:
        SceneError: in each view the image of the unit sphere is at most a tenth of the size of the mask.
    """
    warnings = []
    # A camera on a tripod may have another lens.
    flat = np.concatenate([c2w[:, :3, 3], c2w[:, :3, :3].reshape(-1, 9), K.reshape(-1, 9)], axis=1)
    apart = np.abs(flat[:, None] - flat[None]).max(axis=-1) + np.tri(len(flat))
    if (apart < 1e-9).any():
        i, j = np.argwhere(apart < 1e-9)[0]
        more = int((apart < 1e-9).any(axis=0).sum()) - 1
        warnings.append(
            f"{path}: world_mat_{i} and world_mat_{j} are the same camera{f' (and {more} more)' if more else ''}; "
            "check that each view has its own camera"
        )
    distance = np.linalg.norm(c2w[:, :3, 3], axis=1)
    spread = np.ptp(c2w[:, :3, 3], axis=0).max()
    if spread < 0.03 * distance.mean() and not (apart < 1e-9).any():
        warnings.append(
            f"{path}: all cameras are within {spread:.2g} radii of one place, {distance.mean():.3g} from the object; "
            "check that poses are world to camera, not camera to world"
        )
    radius = np.sqrt(K[:, 0, 0] * K[:, 1, 1] / (distance**2 - 1))  # approximate radius of the sphere's image, in pixels
    size = np.sqrt(np.array([mask.sum() for mask in masks]) / np.pi)
    filled = size / radius
    if filled.min() > 10:
        raise SceneError(
            f"{path}: the image of the unit sphere is {filled.min():.3g} times smaller than the masks; check that "
            "scale_mat and world_mat have the same units, and that K belongs to maps of this size"
        )
    if filled.max() < 0.1:
        warnings.append(
            f"{path}: the object fills {filled.max():.1%} of the unit sphere's radius, which limits its detail; fit "
            "scale_mat to the object (or is it in other units?)"
        )
    return warnings


def _read_matrices(path: Path, num_views: int, scale_is_optional: bool) -> dict[str, np.ndarray]:
    """Read all world_mat_i and scale_mat_i as finite (4, 4) float64; identities if all scale_mat_i may be missing."""
    arrays = read_npz(path, re.compile(r"(world|scale)_mat_\d+").fullmatch, _MATRIX_BYTES)
    count = sum(name.startswith("world_mat_") for name in arrays)
    if count != num_views:
        raise SceneError(
            f"{path}: holds {count} cameras (world_mat_i) for {num_views} views; write one for each, numbered from 0"
        )
    if scale_is_optional and not any(name.startswith("scale_mat_") for name in arrays):
        arrays |= {f"scale_mat_{i}": np.eye(4) for i in range(num_views)}
    return {
        name: _matrix(path, name, arrays) for i in range(num_views) for name in (f"world_mat_{i}", f"scale_mat_{i}")
    }


def _matrix(path: Path, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    if name not in arrays:
        raise SceneError(f"{path}: has no {name}; each view needs its world_mat and scale_mat, numbered from 0")
    array = arrays[name]
    if array.shape != (4, 4) or array.dtype.kind not in "fiu":
        raise SceneError(f"{path}: {name} is a {array.dtype} array of shape {array.shape}; write a 4x4 float array")
    if not np.isfinite(array).all():
        raise SceneError(f"{path}: {name} holds values that are not finite; write that camera again")
    array = array.astype(np.float64)
    largest = np.abs(array).max()
    if array.any() and not 1 / LARGEST <= largest <= LARGEST:
        raise SceneError(f"{path}: {name} has entries of magnitude {largest:.3g}; use other units")
    return array


def _check_similarity(path: Path, world_from_unit: np.ndarray) -> None:
    block = world_from_unit[:3, :3]
    gram = block.T @ block
    square = np.trace(gram) / 3
    is_affine = np.allclose(world_from_unit[3], [0, 0, 0, 1])
    if not is_affine or square <= 1e-60 or np.abs(gram - square * np.eye(3)).max() > 1e-4 * square:
        raise SceneError(
            f"{path}: scale_mat_0 is not a uniform scale and translation; use one factor for all three axes"
        )
    if np.linalg.det(block) < 0:
        raise SceneError(f"{path}: scale_mat_0 is mirrored; use a positive scale")


def _check_pose(path: Path, i: int, c2w: np.ndarray, is_negative: bool, cause: str) -> None:
    """Check that a camera looks at the unit sphere from outside; `cause` is appended to the message."""
    depth = np.linalg.inv(c2w)[2, 3]
    if depth <= 0:
        # A mirrored camera and a negative multiple of a valid one differ only in the side on which the object is.
        what = "is a mirrored camera" if is_negative else "looks away from the unit sphere"
        raise SceneError(f"{path}: world_mat_{i} {what}; it has to be K [R | t] with x right, y down, z forward{cause}")
    distance = _norm(c2w[:3, 3])
    if distance <= 1:
        raise SceneError(
            f"{path}: world_mat_{i} has its camera inside the unit sphere ({distance:.3g} radii from the center); "
            f"fit scale_mat to the object alone{cause}"
        )


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array))
