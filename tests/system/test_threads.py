# SPDX-License-Identifier: Apache-2.0
"""CPU threads: limits hold within their block only, and idle OpenMP threads outnumber the cores."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.programs import run
from threadpoolctl import threadpool_info

from pmni_nerfstudio.threads import one_thread


def blas_threads() -> list[int]:
    """Threads of each loaded BLAS library."""
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_one_thread_limits_torch_and_blas_within_its_block():
    assert (np.ones((2, 2)) @ np.ones((2, 2)) == 2).all()
    torch_before, before = torch.get_num_threads(), blas_threads()
    with one_thread():
        assert torch.get_num_threads() == 1 and set(blas_threads()) == {1}
    assert torch.get_num_threads() == torch_before and blas_threads() == before


@pytest.mark.parametrize(
    ("environment", "threads"), [({}, None), ({"OMP_WAIT_POLICY": "active"}, 1), ({"OMP_WAIT_POLICY": "passive"}, None)]
)
def test_training_uses_several_threads_only_if_they_sleep(
    tmp_path: Path, environment: dict[str, str], threads: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_WAIT_POLICY")  # of the tests' own process
    program = tmp_path / "program.py"
    program.write_text(
        "import os, torch\n"
        "torch.set_num_threads(2)\n"
        "from pmni_nerfstudio.threads import limit_threads\n"
        "limit_threads()\n"
        "print(torch.get_num_threads(), len(os.listdir('/proc/self/task')))\n"
    )
    ended = run(["python", program], environment=environment)
    assert ended.code == 0, ended.output
    used, running = map(int, ended.stdout.split("\n")[-2].split())
    assert used == (threads or 2)
    if not environment:  # libgomp stops spinning when it manages more threads than there are cores
        assert running > (os.cpu_count() or 1)
