# SPDX-License-Identifier: Apache-2.0
"""Registrations kept on disk, found again by the content of what went in."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.files import atomic_path
from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.registration.judge import Judgement
from pmni_nerfstudio.registration.register import Registration, RegistrationSettings
from pmni_nerfstudio.registration.rings import Hypothesis
from pmni_nerfstudio.registration.surface import Surface
from pmni_nerfstudio.registration.views import Views


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
    """Write it as .npz, atomically."""
    r = registration
    arrays = {
        "c2w": r.c2w,
        "sdf": r.surface.sdf,
        "trusted": r.trusted,
        "pairwise_cost": np.array(r.pairwise_cost),
        "warnings": np.array(r.warnings, dtype=str),
        "stages": np.array(list(r.seconds), dtype=str),
        "seconds": np.array(list(r.seconds.values())),
        "hypothesis_names": np.array([h.name for h in r.hypotheses], dtype=str),
        "hypothesis_costs": np.array([h.cost for h in r.hypotheses]),
        "hypothesis_pruned": np.array([h.pruned for h in r.hypotheses], dtype=bool),
    }
    arrays |= {f"judgement_{f.name}": getattr(r.judgement, f.name) for f in dataclasses.fields(Judgement)}
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def load_registration(path: Path) -> Registration:
    """Read what `save_registration` wrote.

    Raises:
        PmniError: the file is broken.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        hypotheses = zip(arrays["hypothesis_names"], arrays["hypothesis_costs"], arrays["hypothesis_pruned"])
        return Registration(
            c2w=arrays["c2w"],
            surface=Surface(arrays["sdf"]),
            trusted=arrays["trusted"],
            judgement=Judgement(**{f.name: arrays[f"judgement_{f.name}"] for f in dataclasses.fields(Judgement)}),
            hypotheses=tuple(Hypothesis(str(name), float(cost), bool(pruned)) for name, cost, pruned in hypotheses),
            pairwise_cost=float(arrays["pairwise_cost"]),
            seconds=dict(zip(map(str, arrays["stages"]), map(float, arrays["seconds"]))),
            warnings=tuple(map(str, arrays["warnings"])),
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PmniError(f"{path}: can't be read ({one_line(error)[:200]}): remove it to register again") from error
