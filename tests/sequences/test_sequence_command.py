# SPDX-License-Identifier: Apache-2.0
"""`pmni sequence` from folders to meshes, in the processes that it starts."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from helpers.scenes import make_sphere
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.cli import main as pmni
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.ground_truth import read_ground_truth
from pmni_nerfstudio.evaluation.stored_sequence import read_sequence
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.sequences import block, running
from pmni_nerfstudio.sequences.continuation import continued
from pmni_nerfstudio.sequences.frames import Frame, check_output_folder, check_same_cameras, find_frames
from pmni_nerfstudio.sequences.plan import Plan, Settings

NAMES = ("0000", "0001", "0002")


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames of the figure, with their truth."""
    folder = tmp_path_factory.mktemp("sequence")
    options = ["--shape", "figure", "--frames", "3", "--views", "8", "--width", "48", "--height", "40"]
    pmni(["synth", str(folder / "data"), "--truth", str(folder / "truth"), *options, "--mesh-resolution", "48"])
    return folder


def run(capture: Path, *options: str) -> int:
    """Exit code of the command."""
    common = ["--output-dir", str(capture / "out"), "--resolution", "64", "--steps", "10"]
    try:
        pmni(["sequence", str(capture / "data"), *common, *options])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def distance(mesh: trimesh.Trimesh, truth_folder: Path) -> float:
    """Mean distance of a mesh's vertices to the true surface, in % of the sphere's radius."""
    truth = read_ground_truth(truth_folder)
    unit = mesh.copy().apply_transform(np.linalg.inv(truth.world_from_unit))
    return 100 * float(RayCaster(truth.mesh).distance(np.asarray(unit.vertices)).mean())


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch):
    """Blocks run in this process, which has already loaded what theirs would load."""

    def run_block(job: tuple[str, ...], out: Path, *_: object) -> running.BlockResult:
        block.main([str(out), *job])
        return running.BlockResult(job, None)

    monkeypatch.setattr(running, "run_locally", lambda work, jobs, out, *_: (run_block(job, out) for job in jobs))


def test_a_sequence_from_start_to_end(capture: Path, in_this_process: None, capsys: pytest.CaptureFixture[str]):
    """A damaged frame fails by itself, and what is done is not done again."""
    (capture / "data" / "frames" / "0001" / "mask" / "03.png").write_bytes(b"no image")
    assert run(capture) == 2
    printed = capsys.readouterr()
    assert "0001" in printed.err and "frame 0001: failed" in printed.out and "Next: pmni view" in printed.out
    out = capture / "out"
    record = json.loads((out / "sequence.json").read_text())
    assert [entry["frame"] for entry in record["frames"]] == list(NAMES)
    assert [entry["error"] is None for entry in record["frames"]] == [True, False, True]
    assert "mask/03.png" in record["frames"][1]["error"]
    assert [frame.name for frame in read_sequence(out).frames] == ["0000", "0002"]
    for name, other in (("0000", "0002"), ("0002", "0000")):
        mesh = read_mesh(out / "meshes" / f"{name}.ply")
        own, moved = (distance(mesh, capture / "truth" / "frames" / at) for at in (name, other))
        assert own < 0.6 * moved and own < 2.0

    times = {name: (out / "meshes" / f"{name}.ply").stat().st_mtime_ns for name in ("0000", "0002")}
    assert run(capture) == 2
    assert "2 of 3 frames are done" in capsys.readouterr().out
    assert {name: (out / "meshes" / f"{name}.ply").stat().st_mtime_ns for name in times} == times


def test_a_frame_is_done_again_if_its_data_or_its_neighbors_change(tmp_path: Path):
    for name in NAMES:
        (tmp_path / name / "mask").mkdir(parents=True)
        (tmp_path / name / "mask" / "00.png").write_bytes(name.encode())
    frames = tuple(find_frames(tmp_path))
    assert [frame.name for frame in frames] == list(NAMES)
    settings = Settings(None, fuse=True, steps=0, resolution=64, seed=0)
    moving = Plan(tmp_path, frames, settings, None)
    before = [moving.key(frame) for frame in frames]
    (tmp_path / "0001" / "mask" / "00.png").write_bytes(b"changed")
    after = [moving.key(frame) for frame in find_frames(tmp_path)]
    assert [a == b for a, b in zip(before, after)] == [True, False, True]
    assert replace(moving, settings=replace(settings, seed=1)).key(frames[0]) != before[0]


@pytest.mark.parametrize(
    ("folders", "named"),
    [(["0000"], "has 1 numbered folder;"), (["1", "01"], "same number"), ([], "no numbered folders")],
)
def test_folders_that_are_no_sequence(tmp_path: Path, folders: list[str], named: str):
    for folder in folders:
        (tmp_path / "frames" / folder).mkdir(parents=True)
    with pytest.raises(PmniError, match=named):
        find_frames(tmp_path)


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path):
    for folder in ("10", "9", "notes", "100"):
        (tmp_path / folder).mkdir()
    assert [frame.name for frame in find_frames(tmp_path)] == ["9", "10", "100"]


def test_frames_of_other_cameras_are_reported():
    first = make_sphere(4).in_memory()
    c2w = first.c2w
    assert c2w is not None
    check_same_cameras(first, first)
    moved = c2w.copy()
    moved[1, 0, 3] += 1.0
    for other, named in (
        (replace(first, names=(*first.names[:-1], "99")), "other views"),
        (replace(first, c2w=moved), "other camera positions"),
        (replace(first, K=1.1 * first.K), "other intrinsics"),
    ):
        with pytest.raises(PmniError, match=f"{named}.*--cameras moving"):
            check_same_cameras(first, other)


def test_blocks_are_consecutive_and_as_many_as_run_at_a_time():
    frames = [Frame(str(i), Path(str(i))) for i in range(7)]
    assert running.blocks_of(frames, None, "local", 2) == [("0", "1", "2", "3"), ("4", "5", "6")]
    assert running.blocks_of(frames, 3, "local", 2) == [("0", "1", "2"), ("3", "4", "5"), ("6",)]
    assert running.blocks_of([], None, "local", 2) == []


def test_a_block_that_fails_is_named_by_its_frames(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho error: no memory >&2\nexit 1\n")
    python.chmod(0o755)
    result = running.run_block(("0002", "0003", "0004"), tmp_path / "out", bin_folder=tmp_path)
    assert result.reason is not None and result.reason.startswith("frames 0002 to 0004: no memory (see ")
    result = running.run_block(("0002",), tmp_path / "out", bin_folder=tmp_path)
    assert result.reason is not None and result.reason.startswith("frame 0002: no memory (see ")


def test_a_start_takes_over_only_what_did_not_move():
    """Two balls: one stays, with errors of noise, and one moves by several voxels."""
    n = 65
    points = grid_points(n).numpy()

    def balls(shift: float) -> np.ndarray:
        left = np.linalg.norm(points + [0.5, 0, 0], axis=-1) - 0.3
        right = np.linalg.norm(points - [0.5, shift, 0], axis=-1) - 0.3
        return np.minimum(left, right).astype(np.float32)

    noise = np.random.default_rng(0).normal(0, 0.05 * 2 / (n - 1), (n, n, n)).astype(np.float32)
    before, now = balls(0.0), Surface(balls(0.15) + noise)
    start = continued(before, now)
    near, left = np.abs(now.sdf) < 2 * now.voxel, points[..., 0] < -0.1
    assert np.abs(start - before)[near & left].mean() < 0.5 * np.abs(now.sdf - before)[near & left].mean()
    # On the side of the motion, nothing of the frame before remains.
    truth = balls(0.15)
    ahead = near & (points[..., 0] > 0.1) & (np.abs(points[..., 1] - 0.075) > 0.15)
    assert np.array_equal(start[ahead], now.sdf[ahead])
    assert np.abs(start - truth)[near].max() <= np.abs(noise).max() + 0.3 * now.voxel


def test_poses_in_one_frame_alone_are_reported():
    first = make_sphere(4).in_memory()
    with pytest.raises(PmniError, match="has no poses, and .* has poses"):
        check_same_cameras(first, replace(first, c2w=None))
    with pytest.raises(PmniError, match="has poses, and .* has none"):
        check_same_cameras(replace(first, c2w=None), first)


def test_cameras_that_turn_in_place_are_reported():
    first = make_sphere(4).in_memory()
    assert first.c2w is not None
    turned = first.c2w.copy()
    turned[2, :3, :3] @= Rotation.from_euler("y", 2, degrees=True).as_matrix()
    with pytest.raises(PmniError, match="other camera orientations.*--cameras moving"):
        check_same_cameras(first, replace(first, c2w=turned))
    # The same cameras about another unit sphere.
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = 1.2 * np.eye(3), (0.1, 0.0, -0.2)
    other = transform_poses(np.linalg.inv(moved), first.c2w)
    check_same_cameras(first, replace(first, c2w=other, world_from_unit=first.world_from_unit @ moved))


@pytest.mark.parametrize(("place", "is_refused"), [(".", True), ("frames", True), ("frames/1/x", True), ("out", False)])
def test_results_do_not_mix_with_the_frames(tmp_path: Path, place: str, is_refused: bool):
    for name in ("1", "2"):
        (tmp_path / "frames" / name).mkdir(parents=True)
    frames = find_frames(tmp_path)
    with pytest.raises(PmniError, match="of its own") if is_refused else nullcontext():
        check_output_folder(tmp_path / place, tmp_path, frames)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--jobs", "0"], "jobs: 0 is not positive"),
        (["--block", "0"], "block: 0 is not positive"),
        (["--steps", "-1"], "steps: -1 is negative"),
        (["--seed", "-5"], "seed: -5 is out of range"),
        (["--seed", str(2**32)], "seed: 4294967296 is out of range"),
    ],
)
def test_options_out_of_range_end_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], line: str
):
    with pytest.raises(SystemExit) as ended:
        pmni(["sequence", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out"), *options])
    assert ended.value.code == 1
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and line in printed[0] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "{}", '{"frames": [1], "settings": {}, "shared": null}'])
def test_a_damaged_plan_is_named(tmp_path: Path, text: str):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PmniError, match="plan.json.*run pmni sequence again"):
        Plan.load(tmp_path)


def test_a_frame_that_fails_leaves_no_earlier_mesh(tmp_path: Path):
    for name in ("1", "2"):
        (tmp_path / "data" / name).mkdir(parents=True)
    settings = Settings(None, fuse=True, steps=0, resolution=64, seed=0)
    plan = Plan(tmp_path / "out", tuple(find_frames(tmp_path / "data")), settings, None)
    frame = plan.frames[0]
    plan.mesh(frame).parent.mkdir(parents=True)
    plan.mesh(frame).write_bytes(b"of an earlier run")
    assert block.Block(plan).run(frame)["verdict"] == "failed"
    assert not plan.mesh(frame).exists()
