# SPDX-License-Identifier: Apache-2.0
"""Comparison of recovered poses with given ones: which given poses are wrong, and by which common mistake."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.geometry.transforms import flip_camera_axes
from pmni_nerfstudio.registration.poses import Poses

_MAX_ROUGHNESS_DEG = 60.0
"""A given pose that differs by more from the recovered one is wrong, not rough."""
_SAME_DEG = 25.0
"""Angle up to which the recovered poses confirm a suspected mistake in the given ones."""
_MIRROR = np.diag([-1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class GivenPoses:
    """Comparison of the recovered poses with the given ones."""

    rotation_deg: Float[np.ndarray, " n"]
    """Angle between each view's recovered and given orientation after the best common rotation, in degrees."""
    swapped: tuple[tuple[int, int], ...] = ()
    """Pairs of views whose given poses are exchanged."""
    mistake: str | None = None
    """Mistake that explains all given poses, as part of a sentence; None if there is none."""

    @property
    def agreeing(self) -> Bool[np.ndarray, " n"]:
        """Views whose given pose is right, or rough."""
        return self.rotation_deg <= _MAX_ROUGHNESS_DEG

    @property
    def world_is_kept(self) -> bool:
        """Whether enough given poses agree that their world is the result's."""
        return self.mistake is None and float(self.agreeing.mean()) >= 0.5


def compare_with_given(poses: Poses, given: Poses, inliers: Bool[np.ndarray, " n"]) -> GivenPoses:
    """Compare recovered with given world-to-camera poses, whatever their worlds.

    Args:
        poses: recovered poses.
        given: given poses.
        inliers: views whose recovered poses are reliable.
    """
    differences = _differences_deg(given.R, poses.R, inliers)
    agreeing = differences <= _MAX_ROUGHNESS_DEG
    if not agreeing[inliers].all():
        # Half of the views may agree by chance, so the mistakes are tried wherever one view does not.
        same = float((differences[inliers] < _SAME_DEG).mean())
        mistake = _common_mistake(poses, given, inliers, same)
        if mistake is not None or agreeing[inliers].mean() < 0.5:
            return GivenPoses(differences, mistake=mistake)
    rotation = _common_rotation(given.R, poses.R, inliers & agreeing)
    swapped = []
    wrong = np.flatnonzero(~agreeing & inliers)
    for a, i in enumerate(wrong):
        for j in wrong[a + 1 :]:
            crossed = angles_deg(given.R[[j, i]] @ rotation, poses.R[[i, j]])
            if (crossed < _SAME_DEG).all():
                swapped.append((int(i), int(j)))
    return GivenPoses(differences, tuple(swapped))


def _common_mistake(poses: Poses, given: Poses, inliers: Bool[np.ndarray, " n"], same: float) -> str | None:
    """The mistake that, undone, makes most given poses agree with the recovered ones.

    Args:
        poses: recovered poses.
        given: given poses.
        inliers: views whose recovered poses are reliable.
        same: share of the inliers that agree without undoing anything; a mistake has to explain clearly more.
    """
    needed = min(max(0.7, same + 0.2), 0.95)
    # Orientations do not tell a mirrored world from OpenGL axes, since both together are a reflection of the world through
    # its origin. But the object is behind cameras whose axes are OpenGL's.
    if float(np.median(given.t[:, 2])) < 0:
        mistake, R = (
            "the camera axes are OpenGL's (y up, z backward) instead of OpenCV's",
            Poses.from_c2w(flip_camera_axes(given.c2w())).R,
        )
    else:
        mistake, R = "the world or the cameras are mirrored (left-handed)", _MIRROR @ given.R @ _MIRROR
    candidates = {
        mistake: R,
        "the matrices are inverted (camera-to-world instead of world-to-camera)": np.swapaxes(given.R, 1, 2),
    }
    shares = {
        mistake: float((_differences_deg(R, poses.R, inliers)[inliers] < _SAME_DEG).mean())
        for mistake, R in candidates.items()
    }
    best = max(shares, key=lambda mistake: shares[mistake])
    if shares[best] > needed:
        return best
    # A pair of swapped views is reported as such.
    if same < 0.7 and _permuted(poses.R[inliers], given.R[inliers], max(0.8, same + 0.2)):
        return "the poses belong to the views in another order (compare the order of the file names)"
    return None


def _permuted(R: Float[np.ndarray, "n 3 3"], given: Float[np.ndarray, "n 3 3"], share: float) -> bool:
    """Whether more than a share of the given rotations are recovered ones, in another order."""
    n = len(R)
    for k in range(n):  # the first view has the k-th given pose
        rotation = given[k].T @ R[0]
        costs = angles_deg((given @ rotation)[:, None], R[None])
        rows, columns = linear_sum_assignment(np.minimum(costs, 60))
        if (costs[rows, columns] < _SAME_DEG).mean() > share:
            return True
    return False


def _common_rotation(
    source: Float[np.ndarray, "n 3 3"], target: Float[np.ndarray, "n 3 3"], which: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "3 3"]:
    """Rotation Q of the world for which most source Q (world to camera) agree with the target."""
    relative = np.swapaxes(source[which], 1, 2) @ target[which]
    counts = [(angles_deg(relative, r[None]) < 30).sum() for r in relative]
    return relative[int(np.argmax(counts))]


def _differences_deg(
    source: Float[np.ndarray, "n 3 3"], target: Float[np.ndarray, "n 3 3"], inliers: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Angles between orientations after the common rotation that most inliers agree on, in degrees."""
    return angles_deg(source @ _common_rotation(source, target, inliers), target)
