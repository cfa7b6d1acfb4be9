# SPDX-License-Identifier: Apache-2.0
"""Registrations on disk: saved ones are restored, and damaged files give one line that names the file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.reflectance_bias import COEFFICIENTS, ReflectanceBias
from pmni_nerfstudio.registration import cache
from pmni_nerfstudio.registration.cache import load_registration, save_registration
from pmni_nerfstudio.registration.confidence import ViewAgreement
from pmni_nerfstudio.registration.intrinsics import RefinedIntrinsics
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import Hypothesis
from pmni_nerfstudio.registration.pipeline import Registration
from pmni_nerfstudio.registration.reflectance import EstimatedBias
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.verdict import Verdict, ViewStatus

REFLECTANCE = EstimatedBias(ReflectanceBias((0.01,) * COEFFICIENTS), 1.5, 0.1, (0.0, 0.5), "why")
INTRINSICS = RefinedIntrinsics(1.01, (0.001, 0.0), 0.01, (0.1, 0.2), True, False, "why", "a warning")


def registration(hypotheses: tuple[Hypothesis, ...] = (Hypothesis("left", 1.5, True),)) -> Registration:
    rng = np.random.default_rng(0)
    agreement = ViewAgreement(*rng.uniform(size=(4, 3)))
    sdf = rng.normal(size=(9, 9, 9)).astype(np.float32)
    verdict = Verdict("doubtful", ("one", "two"), (ViewStatus("ok"), ViewStatus("left out", "bad"), ViewStatus("ok")))
    return Registration(
        np.tile(np.eye(4), (3, 1, 1)),
        Surface(sdf),
        verdict,
        agreement,
        INTRINSICS,
        REFLECTANCE,
        "ring",
        hypotheses,
        0,
        {"a": 1.0},
    )


@pytest.mark.parametrize("hypotheses", [(), (Hypothesis("left", 1.5, True), Hypothesis("right", 2, False))])
def test_saved_registrations_are_restored(hypotheses: tuple[Hypothesis, ...], tmp_path: Path):
    saved = registration(hypotheses)
    save_registration(tmp_path / "r.npz", saved)
    again = load_registration(tmp_path / "r.npz")
    assert (again.hypotheses, again.verdict, again.seconds) == (hypotheses, saved.verdict, {"a": 1.0})
    assert (
        again.intrinsics == saved.intrinsics
        and again.reflectance == REFLECTANCE
        and again.start == "ring"
        and again.trusted.tolist() == [True, False, True]
    )
    np.testing.assert_array_equal(again.c2w, saved.c2w)
    np.testing.assert_array_equal(again.surface.sdf, saved.surface.sdf)
    np.testing.assert_array_equal(again.agreement.confidence, saved.agreement.confidence)


def changed(**arrays: Any) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
        content.update({name: array for name, array in arrays.items() if array is not None})
        np.savez(path, **{name: array for name, array in content.items() if arrays.get(name, 0) is not None})

    return change


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-200]), "can't be read"),
    "empty": (lambda p: p.write_bytes(b""), "can't be read"),
    "lacking": (changed(verdict=None), "verdict is missing"),
    "views": (changed(c2w=np.tile(np.eye(4), (2, 1, 1))), "view_status has an unexpected shape"),
    "no cube": (changed(sdf=np.ones((9, 9, 8), np.float32)), "sdf has an unexpected shape"),
    "not finite": (changed(sdf=np.full((9, 9, 9), np.nan, np.float32)), "sdf has .* not finite"),
    "kind": (changed(hypothesis_pruned=np.ones(1)), "hypothesis_pruned has an unexpected shape or type"),
    "pickle": (changed(seconds=np.array([{}], dtype=object)), "can't be read"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "is not a regular file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_reported(kind: str, tmp_path: Path):
    path = tmp_path / "r.npz"
    save_registration(path, registration())
    damage, match = DAMAGE[kind]
    damage(path)
    with pytest.raises(PmniError, match=match) as error:
        load_registration(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ") and line.endswith("remove it to register again") and line.isprintable()
    assert line.count(str(path)) == 1


def test_oversized_arrays_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "r.npz"
    save_registration(path, registration())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.npy", bytes(1 << 20))  # of an unknown name: ignored
    load_registration(path)
    monkeypatch.setattr(cache, "_MAX_BYTES", 1000)
    with pytest.raises(PmniError, match=r"sdf.npy has 3,\d+ bytes, at most 1,000"):
        load_registration(path)
