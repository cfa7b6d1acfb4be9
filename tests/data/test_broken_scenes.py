# SPDX-License-Identifier: Apache-2.0
"""Broken scenes (helpers/broken_scenes.py): each ends in a one-line error and exit code 1, or in a named warning."""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.broken_scenes import (
    CAMERAS,
    DEPTH,
    ERRORS,
    WARNINGS,
    Kind,
    Trap,
    npy_of_shape,
    sprung,
)
from helpers.fake_run import fake_config
from helpers.programs import run
from helpers.scene_files import (
    HEIGHT,
    NAMES,
    NORMALS,
    WIDTH,
    change_cameras,
    ellipsoid,
)

from pmni_nerfstudio import cli
from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.depths import read_depths
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.training.trained_run import load_run, read_config


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "scene"
    write_scene(root, **ellipsoid())
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A good scene to break."""
    return Path(shutil.copytree(template, tmp_path / "scene"))


# ---- each of them ---------------------------------------------------------------------------------------------------


def test_at_least_forty_distinct_cases() -> None:
    names = [row.name.replace("_", " ") for row in ERRORS + WARNINGS]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize("row", ERRORS, ids=[row.name for row in ERRORS])
def test_reading_a_broken_scene_raises_a_one_line_error(row: Kind, root: Path) -> None:
    row.break_it(root)
    with pytest.raises(SceneError) as caught:
        read_scene(root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(root / row.where))
    assert re.search(row.words, message), message
    assert not sprung(root).exists(), "a pickle was opened"


@pytest.mark.parametrize("row", WARNINGS, ids=[row.name for row in WARNINGS])
def test_minor_defects_are_read_with_a_warning(row: Kind, root: Path) -> None:
    assert read_scene(root).warnings == ()
    row.break_it(root)
    warnings = read_scene(root).warnings
    assert any(line.startswith(f"{root / row.where}: ") and re.search(row.words, line) for line in warnings), warnings
    assert not any("\n" in line for line in warnings)


def error_of(args: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Error message of a `pmni` command, which has to exit with code 1."""
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    assert end.value.code == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "EXR_ERR" not in line]
    # OpenEXR prints its own warnings about damaged files; the last line is ours.
    assert [line for line in lines if not line.startswith("Warning: Exception raised reading")] == lines[-1:]
    assert lines[-1].startswith("error: ")
    return lines[-1].removeprefix("error: ")


@pytest.mark.parametrize("row", ERRORS, ids=[row.name for row in ERRORS])
def test_a_command_fails_with_the_same_error(
    row: Kind, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    row.break_it(root)
    line = error_of(["register", str(root), "--output-dir", str(tmp_path / "out")], capfd)
    assert line.startswith(str(root / row.where))
    assert re.search(row.words, line), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "row",
    [
        row if i % 30 == 7 else pytest.param(row, marks=[pytest.mark.slow, pytest.mark.exhaustive])
        for i, row in enumerate(ERRORS)
    ],
    ids=[row.name for row in ERRORS],
)
def test_a_program_fails_with_the_same_error(row: Kind, root: Path, tmp_path: Path) -> None:
    """Exit code 1 and no traceback, in a separate process."""
    row.break_it(root)
    end = run(["pmni", "register", root, "--output-dir", tmp_path / "out"], environment=WIDE)
    assert end.code == 1 and "Traceback" not in end.output, end.output
    (line,) = [line for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {root / row.where}") and re.search(row.words, line), end.output
    assert not (tmp_path / "out").exists() and not sprung(root).exists()


@pytest.mark.parametrize("name", ["mask_cut_short", "normals_that_are_zero", "cameras_with_a_trap"])
@pytest.mark.parametrize("command", ["integrate", "eval"])
def test_other_commands_fail_with_the_same_error(
    command: str, name: str, root: Path, capfd: pytest.CaptureFixture
) -> None:
    row = next(row for row in ERRORS if row.name == name)
    row.break_it(root)
    shutil.rmtree(root / "integration")
    mesh = root / "mesh_Gt.ply"
    more = ["--mesh", str(mesh), "--data", str(root)] if command == "eval" else [str(root)]
    assert re.search(row.words, error_of([command, *more], capfd))
    assert not (root / "integration/depth").exists()


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        (-np.ones((HEIGHT, WIDTH), np.float32), "negative depths"),
        (np.full((HEIGHT, WIDTH), np.nan, np.float32), "no depth on the mask"),
        (np.zeros((HEIGHT, WIDTH), np.float32), "no depth on the mask"),
    ],
    ids=["negative", "nan", "zero"],
)
def test_unusable_depth_maps(depth: np.ndarray, words: str, root: Path) -> None:
    """Depth maps are read only when a loss needs them."""
    np.save(root / DEPTH, depth)
    with pytest.raises(SceneError, match=f"9.npy: .*{words}"):
        read_depths(read_scene(root))


def test_a_scene_with_two_views_is_valid(root: Path) -> None:
    for name in NAMES[2:]:
        for file in root.rglob(f"{name}.*"):
            file.unlink()
    change_cameras(root, **{f"{kind}_mat_{i}": lambda _: None for kind in ("world", "scale") for i in (2, 3)})
    assert read_scene(root).num_views == 2


# ---- output folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["register", "eval"])
@pytest.mark.parametrize("place", ["a file", "below a file", "no folder can be created"])
def test_output_folders_that_cannot_be_created(
    command: str, place: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("kept")
    out = {"a file": tmp_path / "file", "below a file": tmp_path / "file/out"}.get(place, Path("/proc/pmni"))
    given = [str(root)] if command == "register" else ["--mesh", str(root / "mesh_Gt.ply"), "--data", str(root)]
    line = error_of([command, *given, "--output-dir", str(out)], capfd)
    assert re.match(f"{out}: can't be created .*give another --output-dir", line)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")
@pytest.mark.parametrize("what", ["mask/9.png", "mask", NORMALS, CAMERAS])
def test_files_without_read_permission(what: str, root: Path) -> None:
    mode = (root / what).stat().st_mode
    (root / what).chmod(0)
    try:
        with pytest.raises(SceneError, match="[Pp]ermission"):
            read_scene(root)
    finally:
        (root / what).chmod(mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")
def test_a_read_only_output_folder(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    assert "can't be written to" in error_of(["register", str(root), "--output-dir", str(tmp_path / "out")], capfd)


def test_a_failed_write_raises_an_error_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("kept")
    with pytest.raises(PmniError, match=r"file.txt: can't be written \(Read-only file system\); .*space"):
        with atomic_path(tmp_path / "file.txt") as temporary:
            temporary.write_text("half")
            raise OSError(30, os.strerror(30))
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "kept"


WIDE = {"COLUMNS": "400"}
"""Environment in which a message stays on one line."""


def test_integrate_on_a_full_disk(root: Path) -> None:
    before = (root / DEPTH).read_bytes()
    end = run(["pmni", "integrate", root, "--overwrite"], largest_file=4096, environment=WIDE)
    assert end.code == 1 and "Traceback" not in end.output, end.output
    assert re.search(rf"error: {root}/integration: can't be written .*space\n$", end.stderr)
    assert (root / DEPTH).read_bytes() == before, "the old depth maps are gone"


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 4000])
def test_register_on_a_full_disk(size: int, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    end = run(["pmni", "register", root, "--output-dir", out], largest_file=size, environment=WIDE)
    assert end.code == 1 and "Traceback" not in end.output, end.output
    assert re.search(rf"error: {out}/[\w.]+: can't be written .*space\n$", end.stderr), end.output
    assert not [path for path in out.rglob("*") if path.name.startswith(".")], "a part of a file is left"


# ---- results for evaluation, and trained runs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("m.ply", b"", "can't be read as a mesh"),
        ("m.ply", b"ply\nformat ascii 1.0\nelement vertex 99999999999\n", "can't be read as a mesh|no faces"),
        ("m.stl", bytes(80) + struct.pack("<I", 4_000_000_000), "can't be read as a mesh|no faces"),
        ("m.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "faces with vertices that do not exist|can't be read"),
        ("m.obj", b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
        ("m.obj", b"v 0 0 0\nv 1e300 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
        ("m.pkl", b"", "give one of .ply"),
        ("gone.ply", None, "no such mesh"),
    ],
)
def test_unusable_meshes(
    name: str, data: bytes | None, words: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    line = error_of(["eval", "--mesh", str(tmp_path / name), "--data", str(root)], capfd)
    assert line.startswith(f"{tmp_path / name}: ")
    assert re.search(words, line), line


def broken_ground_truth(**changes: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        truth = ellipsoid()
        arrays = {"c2w": truth["c2w"], "K": truth["K"], "scale_mat": np.eye(4), "depth": truth["depths"], **changes}
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})

    return write


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b""), "can't be read"),
        (lambda path: path.write_bytes(npy_of_shape((1 << 40,))), "can't be read"),
        (
            lambda path: np.savez(path, c2w=np.array([Trap(path.parent.parent / "sprung")], dtype=object)),
            "can't be read",
        ),
        (broken_ground_truth(K=None), "no numeric array 'K'"),
        (broken_ground_truth(c2w=np.eye(4)), "shapes are inconsistent"),
        (broken_ground_truth(c2w=ellipsoid()["c2w"] * np.nan), "not finite"),
        (broken_ground_truth(scale_mat=np.zeros((4, 4))), "scale_mat is mirrored or singular"),
        (broken_ground_truth(K=np.full((3, 3), "x")), "no numeric array 'K'"),
    ],
    ids=["empty", "npy", "trap", "no K", "one pose", "nan", "singular", "words"],
)
def test_unusable_ground_truth(
    write: Callable[[Path], None], words: str, root: Path, capfd: pytest.CaptureFixture
) -> None:
    (root / "truth").mkdir()
    shutil.copy(root / "mesh_Gt.ply", root / "truth")
    write(root / "truth/truth.npz")
    line = error_of(["eval", "--mesh", str(root / "mesh_Gt.ply"), "--data", str(root)], capfd)
    assert line.startswith(f"{root / 'truth/truth.npz'}: ")
    assert re.search(words, line), line
    assert not sprung(root).exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npy_of_shape((1 << 40, 4, 4)), "can't be read"),
        (npy_of_shape((4, 4, 4)), "can't be read"),
        (b"", "can't be read"),
    ],
    ids=["enormous", "cut", "empty"],
)
def test_unusable_poses(data: bytes, words: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "poses.npy").write_bytes(data)
    args = ["--mesh", str(root / "mesh_Gt.ply"), "--poses", str(tmp_path / "poses.npy"), "--data", str(root)]
    line = error_of(["eval", *args], capfd)
    assert line.startswith(f"{tmp_path / 'poses.npy'}: ")
    assert re.search(words, line), line


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {trap}']",
        "!!python/object/apply:builtins.open ['{trap}', 'w']",
        "!!python/object/apply:pathlib.Path.touch ['{trap}']",
        "!!python/object/new:subprocess.Popen [['touch', '{trap}']]",
        "!!python/object/apply:nerfstudio.utils.scripts.run_command ['touch {trap}']",
        "a: !!python/object/apply:nerfstudio.utils.scripts.subprocess.run [['touch', '{trap}']]",
        "!!python/module:antigravity",
        "!!python/name:os.system",
        "!!python/name:nerfstudio.utils.scripts.subprocess",
        "!!python/object:pathlib.PosixPath []",
        "!!python/object:int {{a: 1}}",
        "!!python/object/apply:pathlib.PosixPath [[1]]",
        "!!python/object/apply:nerfstudio.utils.writer.EventName [no such event]",
        "!!python/tuple 1",
        "!!python/object/apply:_operator.getitem [{{a: 1}}, a]",
        "!!python/object/apply:_operator.getitem [!!python/name:nerfstudio.engine.trainer.TrainerConfig , a]",
        "!!int x",
        "!!timestamp x",
        "[" * 100_000,
    ],
)
def test_nothing_in_a_config_is_executed(text: str, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    path = tmp_path / "config.yml"
    path.write_text(text.replace("{trap}", str(trap)).replace("{{", "{").replace("}}", "}"))
    with pytest.raises(PmniError, match=r"config\.yml: .*give the config\.yml that ns-train wrote") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["neus", "neus-facto", "nerfacto", "pmni", "pmni-original", "neus-facto-small"])
def test_configs_of_surface_methods_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    from nerfstudio.configs.method_configs import all_methods

    text = yaml.dump(all_methods[name])
    (tmp_path / "config.yml").write_text(text)
    assert yaml.dump(read_config(tmp_path / "config.yml")) == text


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, checkpoint = fake_config(tmp_path, monkeypatch)
    torch.save({"pipeline": Trap(tmp_path / "sprung"), "step": 1}, checkpoint)
    with pytest.raises(PmniError, match=f"{checkpoint}: can't be read"):
        load_run(config, "cpu")
    assert not (tmp_path / "sprung").exists()


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mask_that_is_a_pipe", "channels_swapped", "cameras_with_a_trap"],
)
def test_training_does_not_start_on_a_broken_scene(name: str, root: Path, tmp_path: Path) -> None:
    row = next(row for row in ERRORS if row.name == name)
    row.break_it(root)
    flags = ["--output-dir", tmp_path / "runs", "--vis", "tensorboard", "--max-num-iterations", "5"]
    end = run(["ns-train", "pmni-calibrated", "--data", root, *flags], environment=WIDE)
    assert end.code == 1 and "Traceback" not in end.output, end.output
    (line,) = [line for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {root / row.where}")
    assert re.search(row.words, line)
    assert not sprung(root).exists()
