# SPDX-License-Identifier: Apache-2.0
"""Poses of static cameras, from all frames of a sequence together."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.data.npz import hash_array
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import FailedResultError, PmniError
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Round, alternate_frames
from pmni_nerfstudio.registration.console import ProgressLines
from pmni_nerfstudio.registration.intrinsics import RefinedIntrinsics
from pmni_nerfstudio.registration.pipeline import Registration, RegistrationSettings
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.reflectance import EstimatedBias, bias_from_record
from pmni_nerfstudio.registration.views import Views, views_of_scene
from pmni_nerfstudio.threads import one_thread
from pmni_nerfstudio.training.initialization import initialize_by_registration

MAX_FRAMES = 16
"""Largest number of frames that the poses are solved from. Of longer sequences, evenly spread frames are used: memory
grows with their number, and the error only falls with its square root."""
_ROUNDS = {65: 5, 97: 2}
"""Rounds of bundle adjustment by the resolution of the registration's levels.

For 12 frames of a figure with 8 views of 153x128 pixels, 5 deg of noise and 3 deg of bias, the mean rotation error was
0.57 deg for single frames, 0.26 deg for all frames after the first level, and 0.23 deg after the second."""


@dataclass(frozen=True, eq=False)
class SharedPoses:
    """Poses of static cameras, in the unit-sphere world that holds the object in all frames."""

    c2w: Float[np.ndarray, "n 4 4"]
    """Poses of the views that are used, OpenCV axes."""
    views: tuple[int, ...]
    """Indices of these views; the others fit no pose in the frame that was registered first."""
    world_from_unit: Float[np.ndarray, "4 4"]
    """Similarity to the data's world."""
    intrinsics: RefinedIntrinsics
    """Change of the given intrinsics of all views."""
    reflectance: EstimatedBias
    """Reflectance bias of the normals of all views, which is removed from them."""
    frame: str
    """Name of the frame that was registered first."""
    verdict: str
    """Verdict on that registration."""
    reasons: tuple[str, ...]
    """Reasons of the verdict."""

    def scene(self, scene: Scene) -> Scene:
        """A frame's scene with these poses, with corrected intrinsics and normals, and with these views alone."""
        index = list(self.views)
        names = tuple(scene.names[i] for i in index)
        K = self.intrinsics.corrected(scene.K)[index]
        unknown = None if scene.unknown is None else scene.unknown[index]
        views = Views(names, scene.normals[index].astype(np.float32), scene.masks[index], K, unknown=unknown)
        return replace(
            scene,
            names=names,
            K=K,
            c2w=self.c2w,
            world_from_unit=self.world_from_unit,
            masks=views.masks,
            unknown=unknown,
            normals=self.reflectance.removed_from(views).normals.astype(np.float16),
            normal_files=tuple(scene.normal_files[i] for i in index),
            mask_files=tuple(scene.mask_files[i] for i in index),
            image_files=None if scene.image_files is None else tuple(scene.image_files[i] for i in index),
            depth_files=None,
        )

    def record(self) -> dict[str, Any]:
        """Contents for a JSON file."""
        out = dataclasses.asdict(self)
        return out | {"c2w": self.c2w.tolist(), "world_from_unit": self.world_from_unit.tolist()}

    @staticmethod
    def from_record(record: dict[str, Any]) -> SharedPoses:
        """Poses from what `record` returned.

        Raises:
            KeyError, TypeError, ValueError: the record is something else.
        """
        intrinsics = dict(record["intrinsics"])
        for name in ("shift", "shift_std"):
            x, y = intrinsics[name]
            intrinsics[name] = (float(x), float(y))
        return SharedPoses(
            c2w=np.array(record["c2w"], dtype=float).reshape(-1, 4, 4),
            views=tuple(map(int, record["views"])),
            world_from_unit=np.array(record["world_from_unit"], dtype=float).reshape(4, 4),
            intrinsics=RefinedIntrinsics(**intrinsics),
            reflectance=bias_from_record(record["reflectance"]),
            frame=str(record["frame"]),
            verdict=str(record["verdict"]),
            reasons=tuple(map(str, record["reasons"])),
        )


def solve_shared_poses(
    scenes: Sequence[Scene], names: Sequence[str], seed: int, cache: Path, console: Console
) -> SharedPoses:
    """Poses of static cameras from several frames.

    One frame is registered by itself, from its rough poses or none. From there the poses are refined by the bundle
    adjustment of all frames: each has a surface of its own, and all share the poses (`alternate_frames`). Errors of the
    normals that differ between frames thus average out.

    Args:
        scenes: frames from which the poses are solved.
        names: their names.
        seed: seed of the registration.
        cache: folder of the registration and of the result; from it an earlier result for the same data is returned.
        console: where to report.

    Raises:
        FailedResultError: no frame could be registered by itself.
        PmniError: the cache is damaged or cannot be written.
    """
    frames = [views_of_scene(scene) for scene in scenes]
    path = cache / f"poses_{_key(frames, scenes, seed)}.json"
    if path.is_file():
        found = _stored_poses(path)
        console.print(f"Poses: loaded from {path}", highlight=False, soft_wrap=True)
        return found
    first, registration = _registered(scenes, frames, names, seed, cache)
    index = np.flatnonzero(registration.trusted)
    registered = Poses.from_c2w(registration.c2w[index])
    used = [registration.corrected(views).subset(list(index)) for views in frames]
    poses = _refined(used, registered, seed, console)
    # The bundle adjustment has centered its world on the object at all moments. The world of the data does not change.
    scale, rotation, shift = align(poses, registered)
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = scale * rotation, shift
    verdict = registration.verdict
    result = SharedPoses(
        poses.c2w(),
        tuple(map(int, index)),
        scenes[first].world_from_unit @ moved,
        registration.intrinsics,
        registration.reflectance,
        names[first],
        verdict.name,
        verdict.reasons,
    )
    write_json(path, result.record())
    return result


def _stored_poses(path: Path) -> SharedPoses:
    """Result of an earlier call for the same data."""
    advice = "remove it to solve the poses again"
    try:
        return SharedPoses.from_record(read_json_object(path, advice))
    except (KeyError, TypeError, ValueError) as error:
        raise PmniError(f"{path}: does not hold poses ({error!r}); {advice}") from error


def _refined(frames: Sequence[Views], registered: Poses, seed: int, console: Console) -> Poses:
    """Poses after the bundle adjustment of all frames, in a world of their own."""
    schedule = AlternationSchedule()
    levels = tuple(
        replace(level, rounds=_ROUNDS[level.resolution]) for level in schedule.levels if level.resolution in _ROUNDS
    )
    progress = ProgressLines(console, "Poses of all frames")
    rounds, done = sum(level.rounds for level in levels), itertools.count(1)

    def report(round_: Round) -> None:
        residual = round_.median_residual_deg
        stage = "bundle adjustment" + (", no surface point is seen by two views" if np.isnan(residual) else "")
        progress(stage, next(done) / rounds, residual)

    with one_thread():
        return alternate_frames(frames, registered, replace(schedule, levels=levels), seed, on_round=report)[0]


def _registered(
    scenes: Sequence[Scene], frames: Sequence[Views], names: Sequence[str], seed: int, cache: Path
) -> tuple[int, Registration]:
    """Index of the first frame whose registration did not fail, and that registration."""
    tried = list(dict.fromkeys((0, len(scenes) // 2, len(scenes) - 1)))
    for i in tried:
        found = initialize_by_registration(
            frames[i], scenes[i].c2w, RegistrationSettings(seed=seed), cache, train_anyway=True
        ).registration
        assert found is not None
        if found.verdict.name != "failed" and found.surface.exists:
            return i, found
    raise FailedResultError(
        f"{scenes[0].root}: neither this frame nor {', '.join(names[i] for i in tried[1:])} can be registered, for the "
        "reasons above; try pmni register on one of them"
    )


def _key(frames: Sequence[Views], scenes: Sequence[Scene], seed: int) -> str:
    """Hash of everything that the poses depend on: 16 hexadecimal digits."""
    digest = hashlib.sha256(f"{metadata.version('pmni-nerfstudio')} {seed} {_ROUNDS}".encode())
    for views, scene in zip(frames, scenes):
        unknown = () if views.unknown is None else (views.unknown,)
        given = np.zeros(0) if scene.c2w is None else scene.world_from_unit @ scene.c2w
        for array in (views.normals, views.masks, views.K, given, *unknown):
            hash_array(digest, array)
    return digest.hexdigest()[:16]
