# SPDX-License-Identifier: Apache-2.0
"""Damaged files are read or rejected with a one-line error, without a crash or a hang and with bounded memory."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
import yaml
from helpers.fuzz import damage, finding, good_files, run
from helpers.importer_fuzz import WHOLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pmni_nerfstudio.data.camera_files import read_cameras, read_intrinsics
from pmni_nerfstudio.data.images import read_depth, read_normals
from pmni_nerfstudio.data.result_files import read_poses
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.ground_truth import read_ground_truth
from pmni_nerfstudio.evaluation.stored_result import read_evaluated_result
from pmni_nerfstudio.studies.suite import read_suite


@pytest.mark.parametrize(
    ("seed", "executions"),
    [
        (1, 1200),
        pytest.param(2, 3000, marks=pytest.mark.slow),
        *(pytest.param(seed, 10_000, marks=[pytest.mark.slow, pytest.mark.exhaustive]) for seed in (2, 3)),
    ],
)
def test_damaged_bytes(seed: int, executions: int) -> None:
    result = run(seed, executions)
    assert result["executions"] == executions
    assert result["findings"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("executions", [160, pytest.param(750, marks=pytest.mark.exhaustive)])
def test_damaged_bytes_never_leave_a_partial_scene(executions: int) -> None:
    assert run(seed=1, executions=executions, names=WHOLE)["findings"] == {}


def test_the_fuzzer_reports_faults(tmp_path: Path) -> None:
    """The fuzzer reports exceptions of other types, messages of several lines, and messages that do not name the file."""

    def raising(error: Exception) -> Callable[[Path], object]:
        def read(path: Path) -> object:
            raise error

        return read

    file = tmp_path / "file"
    assert finding(raising(PmniError(f"{file}: is broken; export it again")), file) is None
    assert "KeyError: 'x'" in str(finding(raising(KeyError("x")), file))
    assert "line" in str(finding(raising(PmniError(f"{file}: is\nbroken")), file))
    assert "line" in str(finding(raising(PmniError("is broken")), file))
    rng = random.Random(0)
    assert len({damage(bytes(100), bytes(10), rng) for _ in range(100)}) > 60


def bomb() -> str:
    """YAML of about a hundred characters in which each alias expands to nine of the previous one."""
    levels = [f"{c}: &{c} [{', '.join(['*' + p if p else 'x'] * 9)}]" for p, c in zip(["", *"abcdefgh"], "abcdefghi")]
    return "{" + ", ".join(levels) + "}"


@pytest.mark.parametrize("what", ["deep", "bomb", "date", "long name", "endless number"])
@pytest.mark.parametrize("kind", ["suite", "config", "metrics", "intrinsics"])
def test_malicious_text(kind: str, what: str, tmp_path: Path) -> None:
    path, read = good_files(tmp_path)[kind]
    text = {
        "deep": "[" * 50_000,
        "bomb": bomb(),
        "date": "2020-99-99",
        "long name": '"' + "x" * 5000 + '"',
        "endless number": "9" * 10_000,
    }[what]
    for written in (text, f"{{scenes: [{text}], methods: [pmni]}}", f"{{scenes: [scene], methods: [{text}]}}"):
        path.write_text(written)
        assert finding(read, path) is None
    path.write_text(f'{{"scene": {text}}}')
    assert finding(read, path) is None


# ---- text and arrays by Hypothesis ----------------------------------------------------------------------------------

QUIET = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
KEYS = ("fl_x", "fl_y", "cx", "cy", "w", "h")


@QUIET
@given(values=st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON)) | JSON)
def test_any_json_for_intrinsics(tmp_path: Path, values: Any) -> None:
    (tmp_path / "intrinsics.json").write_text(json.dumps(values))
    assert finding(read_intrinsics, tmp_path / "intrinsics.json") is None


@QUIET
@given(
    suite=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("scenes", "methods", "seeds", "eval"), JSON | st.lists(JSON, min_size=1, max_size=3)),
    )
)
def test_any_yaml_for_a_suite(tmp_path: Path, suite: Any) -> None:
    (tmp_path / "s.yml").write_text(yaml.safe_dump(suite))
    assert finding(read_suite, tmp_path / "s.yml") is None


@QUIET
@given(record=JSON)
def test_any_json_for_metrics(tmp_path: Path, record: Any) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(record))
    assert finding(lambda path: read_evaluated_result(path.parent), tmp_path / "metrics.json") is None


SHAPES = st.sampled_from([(4, 4), (3, 4), (0, 4), (), (4,), (2, 4, 4), (4, 4, 1)])
FLOATS = (
    st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e308, -1e200, 5e-324, float("inf"), float("nan"), 100.0]) | st.floats()
)
ARRAYS = st.one_of(
    hnp.arrays(np.float64, SHAPES, elements=FLOATS),
    hnp.arrays(np.float64, (4, 4), elements=FLOATS),
    hnp.arrays(hnp.scalar_dtypes(), SHAPES),
)


@QUIET
@given(arrays=st.tuples(ARRAYS, ARRAYS, ARRAYS, ARRAYS))
def test_any_arrays_for_cameras(tmp_path: Path, arrays: tuple[np.ndarray, ...]) -> None:
    names = ("world_mat_0", "scale_mat_0", "world_mat_1", "scale_mat_1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.savez(tmp_path / "c.npz", **dict(zip(names, arrays)))
        assert finding(lambda path: read_cameras(path, 2), tmp_path / "c.npz") is None


@QUIET
@given(array=ARRAYS | hnp.arrays(np.float64, (2, 4, 4), elements=FLOATS))
def test_any_array_for_poses_depths_and_normals(tmp_path: Path, array: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.save(tmp_path / "a.npy", array)
        for read in (read_depth, read_normals, lambda path: read_poses(path, 2)):
            assert finding(read, tmp_path / "a.npy") is None


@QUIET
@given(names=st.permutations(["c2w", "K", "scale_mat", "depth"]), array=ARRAYS)
def test_any_array_for_ground_truth(tmp_path: Path, names: list[str], array: np.ndarray) -> None:
    good: dict[str, Any] = {"c2w": np.eye(4)[None], "K": np.eye(3), "scale_mat": np.eye(4), "depth": np.ones((1, 5, 4))}
    trimesh.creation.box().export(tmp_path / "mesh_Gt.ply")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.savez(tmp_path / "truth.npz", **{**good, names[0]: array})
        assert finding(lambda path: read_ground_truth(path.parent), tmp_path / "truth.npz") is None
