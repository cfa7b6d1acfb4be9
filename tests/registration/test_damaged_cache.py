# SPDX-License-Identifier: Apache-2.0
"""A damaged cached registration is made again, with one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.scenes import make_sphere

from pmni_nerfstudio.registration.cache import registration_key
from pmni_nerfstudio.registration.pipeline import RegistrationSettings
from pmni_nerfstudio.registration.views import views_of_scene
from pmni_nerfstudio.training import initialization


def test_a_damaged_registration_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    views, settings, made = views_of_scene(make_sphere().in_memory()), RegistrationSettings(), []
    sdf = np.ones((3, 3, 3), np.float32)
    verdict = SimpleNamespace(name="ok")
    result: Any = SimpleNamespace(
        c2w=np.eye(4), surface=SimpleNamespace(sdf=sdf), verdict=verdict, trusted=None, reflectance=None
    )

    def register(*arguments: Any) -> Any:
        made.append(arguments)
        assert not arguments[-1].exists(), "nor does it go on from a damaged coarse result"
        return result

    monkeypatch.setattr(initialization, "register_with_progress", register)
    monkeypatch.setattr(initialization, "save_registration", lambda path, _: path.write_bytes(b"new"))
    key = registration_key(views, None, settings)
    kept = (tmp_path / "own" / f"{key}.npz", tmp_path / "shared" / f"{key}.npz")
    coarse = tmp_path / "shared" / f"{key}-coarse.npz"
    for path in (*kept, coarse):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"damaged")
    found = initialization.initialize_by_registration(
        views, None, settings, tmp_path / "own", shared=tmp_path / "shared"
    )
    assert found.registration is result and len(made) == 1
    assert [path.read_bytes() for path in kept] == [b"new", b"new"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 3
    assert all(path.name in line and line.endswith("; registering again") for path, line in zip((*kept, coarse), lines))
