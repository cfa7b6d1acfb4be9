# SPDX-License-Identifier: Apache-2.0
"""Cache of registrations on disk, keyed by the content of their input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.npz import hash_array, read_npz, write_npz
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.registration.confidence import ViewAgreement
from pmni_nerfstudio.registration.intrinsics import RefinedIntrinsics
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import Hypothesis
from pmni_nerfstudio.registration.pipeline import Registration, RegistrationSettings
from pmni_nerfstudio.registration.reflectance import bias_from_record
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.verdict import STATUSES, VERDICTS, Verdict, ViewStatus
from pmni_nerfstudio.registration.views import Views

_MAX_BYTES = 1 << 29
"""Largest size of an array: that of a surface with 512 vertices per axis."""
_AGREEMENT = {f"agreement_{field.name}": field.name for field in dataclasses.fields(ViewAgreement)}
"""Arrays of `ViewAgreement` in the file, and their fields."""
_SHAPES: dict[str, tuple[tuple[str | int, ...], str]] = {
    "c2w": (("n", 4, 4), "f"),
    "sdf": (("grid", "grid", "grid"), "f"),
    "verdict": ((), "U"),
    "reasons": (("reasons",), "U"),
    "view_status": (("n",), "U"),
    "view_reason": (("n",), "U"),
    "start": ((), "U"),
    "intrinsics": ((), "U"),
    "reflectance": ((), "U"),
    **{name: (("n",), "f") for name in _AGREEMENT},
    "pairwise_cost": ((), "f"),
    "stages": (("stages",), "U"),
    "seconds": (("stages",), "f"),
    "hypothesis_names": (("hypotheses",), "U"),
    "hypothesis_costs": (("hypotheses",), "f"),
    "hypothesis_pruned": (("hypotheses",), "b"),
}
"""Shape and NumPy kind of every array in the file. Equal names in shapes mean equal sizes."""


def registration_key(views: Views, c2w: Float[np.ndarray, "n 4 4"] | None, settings: RegistrationSettings) -> str:
    """Hash of normals, masks, intrinsics, rough poses, settings and version: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    # The repr of a dataclass contains every setting by name.
    digest.update(f"{metadata.version('pmni-nerfstudio')} {settings!r}".encode())
    unknown = () if views.unknown is None else (views.unknown,)
    for array in (views.normals, views.masks, views.K, np.zeros(0) if c2w is None else c2w, *unknown):
        hash_array(digest, array)
    return digest.hexdigest()[:16]


def save_registration(path: Path, registration: Registration) -> None:
    """Write a registration as an .npz file, atomically.

    Raises:
        PmniError: the file cannot be written.
    """
    r = registration
    arrays = {
        "c2w": r.c2w,
        "sdf": r.surface.sdf,
        "verdict": np.array(r.verdict.name, dtype=str),
        "reasons": np.array(r.verdict.reasons, dtype=str),
        "view_status": np.array([view.status for view in r.verdict.views], dtype=str),
        "view_reason": np.array([view.reason for view in r.verdict.views], dtype=str),
        "start": np.array(r.start, dtype=str),
        "intrinsics": np.array(json.dumps(dataclasses.asdict(r.intrinsics)), dtype=str),
        "reflectance": np.array(json.dumps(dataclasses.asdict(r.reflectance)), dtype=str),
        "pairwise_cost": np.array(r.pairwise_cost, dtype=float),
        "stages": np.array(list(r.seconds), dtype=str),
        "seconds": np.array(list(r.seconds.values()), dtype=float),
        "hypothesis_names": np.array([h.name for h in r.hypotheses], dtype=str),
        "hypothesis_costs": np.array([h.cost for h in r.hypotheses], dtype=float),
        "hypothesis_pruned": np.array([h.pruned for h in r.hypotheses], dtype=bool),
    }
    write_npz(path, arrays | {name: getattr(r.agreement, field) for name, field in _AGREEMENT.items()})


def load_registration(path: Path) -> Registration:
    """Read a file that `save_registration` wrote.

    Raises:
        PmniError: the file is missing or damaged, or holds something else.
    """
    try:
        arrays = read_npz(path, _SHAPES.__contains__, _MAX_BYTES)
        _check(arrays)
    except (SceneError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ").removesuffix("; write it again with numpy.savez")
        raise PmniError(f"{path}: not a valid cached registration ({reason}); remove it to register again") from error
    hypotheses = zip(arrays["hypothesis_names"], arrays["hypothesis_costs"], arrays["hypothesis_pruned"])
    return Registration(
        c2w=arrays["c2w"],
        surface=Surface(arrays["sdf"]),
        verdict=_verdict(arrays),
        agreement=ViewAgreement(**{field: arrays[name] for name, field in _AGREEMENT.items()}),
        intrinsics=_intrinsics(str(arrays["intrinsics"])),
        reflectance=bias_from_record(json.loads(str(arrays["reflectance"]))),
        start=str(arrays["start"]),
        hypotheses=tuple(Hypothesis(str(name), float(cost), bool(pruned)) for name, cost, pruned in hypotheses),
        pairwise_cost=float(arrays["pairwise_cost"]),
        seconds=dict(zip(map(str, arrays["stages"]), map(float, arrays["seconds"]))),
    )


def _verdict(arrays: dict[str, np.ndarray]) -> Verdict:
    """Verdict from the arrays of a file."""
    views = zip(arrays["view_status"], arrays["view_reason"])
    return Verdict(
        VERDICTS[VERDICTS.index(str(arrays["verdict"]))],
        tuple(map(str, arrays["reasons"])),
        tuple(ViewStatus(STATUSES[STATUSES.index(str(status))], str(reason)) for status, reason in views),
    )


def _intrinsics(text: str) -> RefinedIntrinsics:
    """Change of the intrinsics from its JSON text."""
    values: dict[str, Any] = json.loads(text)
    for name in ("shift", "shift_std"):
        x, y = values[name]
        values[name] = (float(x), float(y))
    return RefinedIntrinsics(**values)


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError if an array is missing, has another shape or type, or is not finite."""
    sizes: dict[str, int] = {}
    for name, (shape, kind) in _SHAPES.items():
        array = arrays.get(name)
        if array is None:
            raise ValueError(f"{name} is missing")
        # The first array whose shape contains a name fixes its size.
        fits = array.ndim == len(shape) and all(
            size == (sizes.setdefault(expected, size) if isinstance(expected, str) else expected)
            for size, expected in zip(array.shape, shape)
        )
        if not fits or array.dtype.kind != kind or (name in ("c2w", "sdf") and not np.isfinite(array).all()):
            raise ValueError(f"{name} has an unexpected shape or type, or values that are not finite")
    if str(arrays["verdict"]) not in VERDICTS or not np.isin(arrays["view_status"], STATUSES).all():
        raise ValueError("verdict or view_status has an unknown value")
    try:
        _intrinsics(str(arrays["intrinsics"]))
        bias_from_record(json.loads(str(arrays["reflectance"])))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"intrinsics or reflectance cannot be read: {error}") from error
