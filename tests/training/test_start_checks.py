# SPDX-License-Identifier: Apache-2.0
"""Wrong paths and devices: one line with what to do, exit code 1, and no folder left behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import make_config

from pmni_nerfstudio.pmni_config import pmni, pmni_calibrated, pmni_original


def refusal(data: Path, out: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """The line with which ns-train's first step ends."""
    config = make_config("pmni", data, out, 3, **changes)
    with pytest.raises(SystemExit) as stop:
        config.save_config()
    assert stop.value.code == 1 and not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_data_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert refusal(tmp_path / "no", tmp_path / "out", capsys).startswith(f"error: {tmp_path / 'no'}: does not exist")


def test_a_plain_folder_of_normal_maps_names_the_commands(
    sphere_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plain = tmp_path / "my maps"
    shutil.copytree(next(sphere_folder.glob("normal_camera_space*")), plain / "normal")
    line = refusal(plain, tmp_path / "out", capsys)
    assert f"pmni prepare '{plain}' '{plain}_scene' && ns-train pmni --data '{plain}_scene'" in line
    assert f"pmni prepare '{plain}' '{plain}_scene' && " in refusal(plain / "normal", tmp_path / "out", capsys)


def test_checkpoints_that_do_not_exist(sphere_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    assert f"{empty}: contains no checkpoint" in refusal(sphere_folder, out, capsys, load_dir=empty)
    assert "step-000000007.ckpt: no such checkpoint" in refusal(sphere_folder, out, capsys, load_dir=empty, load_step=7)
    assert "is not a folder" in refusal(sphere_folder, out, capsys, load_dir=tmp_path / "no")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(sphere_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = refusal(sphere_folder, tmp_path / "out", capsys, machine__device_type="cuda")
    assert line == "error: --machine.device-type: no CUDA device found; use --machine.device-type cpu"


@pytest.mark.parametrize("method", [pmni, pmni_calibrated, pmni_original])
def test_pages_listen_on_this_machine_only(method):
    assert method.config.viewer.websocket_host == "127.0.0.1"
