# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose parts are not those of the model, as of another scene or an earlier version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.scenes import fitting_intrinsics
from helpers.training import make_config, set_up

from pmni_nerfstudio.fields.sdf_field import PmniFieldConfig
from pmni_nerfstudio.model.grid_levels import DETAIL_VERTICES, with_matching_levels


def test_levels_are_not_dropped_and_a_block_may_be_missing(
    sphere_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"grid_vertices": (5, 9), "detail_vertices": 9}
    changes = {f"pipeline__model__sdf_field__{name}": value for name, value in fields.items()}
    pipeline = set_up(make_config("pmni-calibrated", sphere_folder, tmp_path, 1, **changes)).pipeline
    state = pipeline.state_dict()
    without = {name: value for name, value in state.items() if ".detail." not in name}
    assert len(without) < len(state)
    values = torch.randn(9, 9, 9)
    pipeline.load_pipeline(without | {"_model.field.geometry.values.1": values}, 7)
    torch.testing.assert_close(pipeline.model.field.geometry.values[1].data, values)
    extra = {"_model.field.geometry.values.2": torch.zeros(17, 17, 17)}
    for wrong in (state | extra, {name: value for name, value in state.items() if not name.endswith("values.1")}):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            pipeline.load_pipeline(wrong, 7)
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and str(sphere_folder) in message and "field.geometry.values." in message


def test_one_coarse_view_does_not_coarsen_the_grid() -> None:
    """Only close-ups, which see a part, do not count; a view from far away is one of many."""
    K = np.stack([fitting_intrinsics(153, 128, 15)] * 20)
    c2w = np.tile(np.eye(4), (20, 1, 1))
    c2w[:, 2, 3] = -15
    none = np.zeros(20, dtype=bool)
    alike = with_matching_levels(PmniFieldConfig(), K, c2w, none, detailed=True)
    K[0, :2] /= 4
    far = with_matching_levels(PmniFieldConfig(), K, c2w, none, detailed=True)
    assert far == alike and far.detail_vertices == 0
    K[1:9, :2] *= 8
    close = np.isin(np.arange(20), np.arange(1, 9))
    near = with_matching_levels(PmniFieldConfig(), K, c2w, close, detailed=True)
    assert near.grid_vertices == alike.grid_vertices and near.detail_vertices == DETAIL_VERTICES
    close[8] = False  # seven close-ups are too few for a block
    assert with_matching_levels(PmniFieldConfig(), K, c2w, close, detailed=True).detail_vertices == 0
