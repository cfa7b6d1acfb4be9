# SPDX-License-Identifier: Apache-2.0
"""Registrations kept on disk, found again by the content of what went in."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib import metadata
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.npz import read_npz, write_npz
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.registration.confidence import Judgement
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import Hypothesis
from pmni_nerfstudio.registration.pipeline import Registration, RegistrationSettings
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_JUDGEMENT = "judgement_"
_MAX_BYTES = 1 << 29
"""Of an array: a surface of 512 vertices an axis has as many."""
_SHAPES: dict[str, tuple[tuple[str | int, ...], str]] = {
    "c2w": (("n", 4, 4), "f"),
    "sdf": (("grid", "grid", "grid"), "f"),
    "trusted": (("n",), "b"),
    "pairwise_cost": ((), "f"),
    "warnings": (("warnings",), "U"),
    "stages": (("stages",), "U"),
    "seconds": (("stages",), "f"),
    "hypothesis_names": (("hypotheses",), "U"),
    "hypothesis_costs": (("hypotheses",), "f"),
    "hypothesis_pruned": (("hypotheses",), "b"),
}
"""What is kept: shapes, of n views, and numpy's letter of their kind."""


def registration_key(views: Views, c2w: Float[np.ndarray, "n 4 4"] | None, settings: RegistrationSettings) -> str:
    """Of normals, masks, intrinsics, rough poses, settings and version: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    # A dataclass's repr has every setting by name.
    digest.update(f"{metadata.version('pmni-nerfstudio')} {settings!r}".encode())
    for array in (views.normals, views.masks, views.K, np.zeros(0) if c2w is None else c2w):
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def save_registration(path: Path, registration: Registration) -> None:
    """Write it as .npz, atomically.

    Raises:
        PmniError: the system refuses to write.
    """
    r = registration
    arrays = {
        "c2w": r.c2w,
        "sdf": r.surface.sdf,
        "trusted": r.trusted,
        "pairwise_cost": np.array(r.pairwise_cost, dtype=float),
        "warnings": np.array(r.warnings, dtype=str),
        "stages": np.array(list(r.seconds), dtype=str),
        "seconds": np.array(list(r.seconds.values()), dtype=float),
        "hypothesis_names": np.array([h.name for h in r.hypotheses], dtype=str),
        "hypothesis_costs": np.array([h.cost for h in r.hypotheses], dtype=float),
        "hypothesis_pruned": np.array([h.pruned for h in r.hypotheses], dtype=bool),
    }
    write_npz(path, arrays | {name: getattr(r.judgement, name.removeprefix(_JUDGEMENT)) for name in _of_judgement()})


def load_registration(path: Path) -> Registration:
    """Read what `save_registration` wrote.

    Raises:
        PmniError: the file is missing or broken, or holds something else.
    """
    try:
        arrays = read_npz(path, {*_SHAPES, *_of_judgement()}.__contains__, _MAX_BYTES)
        _check(arrays)
    except (SceneError, ValueError) as error:
        said = str(error).removeprefix(f"{path}: ").removesuffix(": write it again with numpy.savez")
        raise PmniError(f"{path}: is no registration that can be used ({said}): remove it to register again") from error
    hypotheses = zip(arrays["hypothesis_names"], arrays["hypothesis_costs"], arrays["hypothesis_pruned"])
    return Registration(
        c2w=arrays["c2w"],
        surface=Surface(arrays["sdf"]),
        trusted=arrays["trusted"],
        judgement=Judgement(**{name.removeprefix(_JUDGEMENT): arrays[name] for name in _of_judgement()}),
        hypotheses=tuple(Hypothesis(str(name), float(cost), bool(pruned)) for name, cost, pruned in hypotheses),
        pairwise_cost=float(arrays["pairwise_cost"]),
        seconds=dict(zip(map(str, arrays["stages"]), map(float, arrays["seconds"]))),
        warnings=tuple(map(str, arrays["warnings"])),
    )


def _of_judgement() -> list[str]:
    """The names under which a judgement's figures are kept, each of n views."""
    return [f"{_JUDGEMENT}{field.name}" for field in dataclasses.fields(Judgement)]


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError for what is missing, of another shape or kind, or not finite."""
    sizes: dict[str, int] = {}
    for name, (shape, kind) in {**_SHAPES, **{name: (("n",), "f") for name in _of_judgement()}}.items():
        array = arrays.get(name)
        if array is None:
            raise ValueError(f"it lacks {name}")
        # The first array with a letter in its shape says how many that is.
        fits = array.ndim == len(shape) and all(
            size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
            for size, wanted in zip(array.shape, shape)
        )
        if not fits or array.dtype.kind != kind or (name in ("c2w", "sdf") and not np.isfinite(array).all()):
            raise ValueError(f"{name} is of another shape or kind, or not finite")
