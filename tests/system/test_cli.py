# SPDX-License-Identifier: Apache-2.0
"""The `pmni` command: help without torch, one-line errors, and `pmni export` of a field with a known surface."""

import os
import subprocess
import sys
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from helpers.fake_run import fake_config
from helpers.scenes import hit_sphere, render_maps

from pmni_nerfstudio import cli
from pmni_nerfstudio.chunks import Chunks
from pmni_nerfstudio.commands.export import ExportCommand
from pmni_nerfstudio.data.dataparser import PmniDataParserConfig
from pmni_nerfstudio.data.dataset import PmniDataset
from pmni_nerfstudio.data.files import make_output_folder
from pmni_nerfstudio.data.images import read_exr
from pmni_nerfstudio.data.result_files import write_mesh
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.maps import depth_preview
from pmni_nerfstudio.fields.sdf_field import PmniFieldConfig
from pmni_nerfstudio.geometry.mesh import transformed_mesh
from pmni_nerfstudio.model.pmni_model import PmniModel
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizer, PmniPoseOptimizerConfig
from pmni_nerfstudio.training import trained_run as run_module
from pmni_nerfstudio.training.trained_run import Run, latest_checkpoint, load_run, read_config


def test_help_names_every_command_and_imports_no_torch():
    code = (
        "import sys\nfrom pmni_nerfstudio.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in cli.SUBCOMMANDS:
        assert f"\n{name} " in done.stdout


def test_version(capsys):
    cli.main(["--version"])
    printed = capsys.readouterr().out
    assert printed.split() == ["pmni-nerfstudio", version("pmni-nerfstudio")]
    command = [sys.executable, "-m", "pmni_nerfstudio", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == printed


@pytest.mark.parametrize("args", [["exprot"], ["export", "--resolution"], []])
def test_a_wrong_command_line_exits_with_2(args, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    assert end.value.code == 2


def test_an_unknown_command_is_a_one_line_error(capsys):
    with pytest.raises(SystemExit):
        cli.main(["exprot"])
    choices = ", ".join(cli.SUBCOMMANDS)
    assert capsys.readouterr().err == f"error: pmni has no command exprot: choose one of {choices}\n"


@pytest.mark.parametrize("name", list(cli.SUBCOMMANDS))
def test_every_command_has_help_of_its_own(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert f"pmni {name}" in capsys.readouterr().out


def one_line_error(args, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_export_of_a_missing_run(tmp_path, capsys):
    args = ["export", "--load-config", str(tmp_path / "config.yml"), "--output-dir", str(tmp_path / "out")]
    assert "does not exist" in one_line_error(args, capsys)
    assert not (tmp_path / "out").exists()
    (tmp_path / "config.yml").mkdir()
    assert "is a folder" in one_line_error(args, capsys)


@pytest.mark.parametrize(("option", "value"), [("--resolution", "4"), ("--keep-components", "1.5")])
def test_export_refuses_options_out_of_range(option, value, tmp_path, capsys):
    args = ["export", "--load-config", "config.yml", "--output-dir", str(tmp_path), option, value]
    assert option[2:] in one_line_error(args, capsys)


@pytest.mark.parametrize("text", ["a: [}", "!!python/object:no_such_module.Config {a: 1}", "a: 1", "\0"])
def test_an_invalid_config_is_a_one_line_error(text, tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(text)
    with pytest.raises(PmniError, match=r"config\.yml: .*give the config\.yml that ns-train wrote") as error:
        read_config(path)
    assert "\n" not in str(error.value)


def test_the_latest_checkpoint_is_taken(tmp_path):
    with pytest.raises(PmniError, match="contains no checkpoint"):
        latest_checkpoint(tmp_path / "nerfstudio_models")
    for step in (999, 10000, 2500):
        (tmp_path / f"step-{step:09d}.ckpt").touch()
    (tmp_path / "step-000020000.ckpt.tmp").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000010000.ckpt"


def test_a_checkpoint_is_loaded_from_beside_its_config(tmp_path, monkeypatch):
    config, checkpoint = fake_config(tmp_path, monkeypatch)
    torch.save({"pipeline": {}, "step": 7}, checkpoint)
    run = load_run(config, "cpu")
    assert run.checkpoint == checkpoint


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (b"cut short", "can't be read"),
        ([1, 2], "is not a checkpoint"),
        ({"pipeline": {"bad": 1}, "step": 7}, "does not match .*size mismatch"),
    ],
)
def test_an_invalid_checkpoint_is_a_one_line_error(state, words, tmp_path, monkeypatch):
    config, checkpoint = fake_config(tmp_path, monkeypatch)
    if isinstance(state, bytes):
        checkpoint.write_bytes(state)
    else:
        torch.save(state, checkpoint)
    with pytest.raises(PmniError, match=words) as error:
        load_run(config, "cpu")
    assert "\n" not in str(error.value)
    assert str(checkpoint) in str(error.value)


def test_output_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(PmniError, match="can't be created"):
        make_output_folder(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PmniError, match="can't be written to"):
        make_output_folder(tmp_path)


FIELD_RADIUS = 0.55


class SphereModel(PmniModel):
    """A field that is a sphere about the origin, and rendered maps of SPHERE at the optimized poses."""

    device = torch.device("cpu")
    ray_chunks = Chunks(1 << 15, "rays")

    def __init__(self, dataset):
        torch.nn.Module.__init__(self)  # without what PmniModel builds
        scene, views = dataset.scene, list(dataset.views)
        self.K, self.size = scene.K[views], (scene.width, scene.height)
        self.field = PmniFieldConfig(encoding="grid", grid_vertices=(65,), sphere_radius=FIELD_RADIUS).setup()
        self.camera_optimizer = PmniPoseOptimizer(
            PmniPoseOptimizerConfig(mode="SE3"), len(views), "cpu", dataset.cameras.camera_to_worlds
        )
        with torch.no_grad():
            self.camera_optimizer.rotation.normal_(0, 0.02)

    def render_camera(self, camera):
        i = int(camera.metadata["cam_idx"])
        c2w = self.camera_optimizer.c2w_opencv_double()[i]
        mask, normals, z = (m[0] for m in render_maps(hit_sphere, self.K[i : i + 1], c2w[None], *self.size))
        x, y = np.meshgrid(np.arange(self.size[0]), np.arange(self.size[1]))
        length = np.linalg.norm(np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(self.K[i]).T, axis=-1)
        outputs = {
            "normals_camera": normals,
            "depth": np.nan_to_num(z * length)[..., None],
            "accumulation": mask[..., None],
        }
        return {key: torch.from_numpy(value).float() for key, value in outputs.items()}


@pytest.fixture
def fake_run(sphere_folder, monkeypatch):
    parser = PmniDataParserConfig(data=sphere_folder, exclude_views=(2,)).setup()
    dataset = PmniDataset(parser.get_dataparser_outputs("train"), parser.scene)
    model = SphereModel(dataset)
    pipeline = SimpleNamespace(model=model, datamanager=SimpleNamespace(train_dataset=dataset))
    run = Run(sphere_folder / "config.yml", SimpleNamespace(method_name="pmni"), pipeline, sphere_folder / "step.ckpt")
    monkeypatch.setattr(run_module, "load_run", lambda path, device, data=None: run)
    return run


def test_export_writes_everything_in_the_data_world(fake_run, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    cli.main(
        [
            "export",
            "--load-config",
            "config.yml",
            "--output-dir",
            str(out),
            "--resolution",
            "96",
            "--maps",
            "--format",
            "obj",
        ]
    )
    model, dataset = fake_run.pipeline.model, fake_run.pipeline.datamanager.train_dataset
    scene = dataset.scene

    mesh = trimesh.load_mesh(out / "mesh.obj")
    assert mesh.is_watertight
    centre = scene.world_from_unit[:3, 3]
    radii = np.linalg.norm(mesh.vertices - centre, axis=1)
    assert radii == pytest.approx(np.full(len(radii), 55 * FIELD_RADIUS), rel=2e-3)
    assert mesh.volume > 0

    poses = np.load(out / "poses.npy")
    assert len(poses) == scene.num_views
    given = scene.world_from_unit @ scene.c2w
    assert poses[:, :3, 3][2] == pytest.approx(given[2, :3, 3])  # held out
    refined = model.camera_optimizer.c2w_opencv_double()
    assert poses[[0, 1, 3], :3, 3] == pytest.approx((scene.world_from_unit @ refined[:3])[:, :3, 3])
    assert not np.allclose(poses[0, :3, 3], given[0, :3, 3])

    # View 3, the third training view: its files hold the distances at which rays meet the sphere, and its normals.
    name, row, column = scene.names[3], 20, 24
    stored = read_exr(out / "normal_camera_space" / f"{name}.exr")
    depth = read_exr(out / "depth" / f"{name}.exr")
    ray = poses[3, :3, :3] @ np.linalg.inv(scene.K[3]) @ [column, row, 1.0]
    ray /= np.linalg.norm(ray)
    turn = scene.world_from_unit[:3, :3] / 55
    start = (np.linalg.inv(scene.world_from_unit) @ poses[3])[:3, 3]
    distance, normal = hit_sphere(start, turn.T @ ray)
    assert depth[row, column] == pytest.approx(55 * distance, rel=1e-5)
    in_file = (poses[3, :3, :3].T @ turn @ normal) * [1, -1, -1]
    assert stored[row, column] == pytest.approx(in_file, abs=1e-5)
    assert in_file[2] > 0
    assert (stored[0, 0] == 0).all()
    assert depth[0, 0] == 0
    for folder in ("normal_camera_space", "normal_preview", "depth", "depth_preview"):
        assert sorted(path.stem for path in (out / folder).iterdir()) == [scene.names[i] for i in dataset.views]

    printed = capsys.readouterr().out
    for words in (f"{len(mesh.faces):,}", "watertight  yes", "mesh.obj", "transforms.json"):
        assert words in printed


def test_other_methods_are_referred_to_ns_export(fake_run, tmp_path):
    fake_run.pipeline.model = torch.nn.Module()
    with pytest.raises(PmniError, match="use ns-export"):
        ExportCommand(load_config=tmp_path / "config.yml", output_dir=tmp_path).main()


@pytest.mark.parametrize("suffix", ["ply", "obj", "stl", "glb"])
def test_every_format_reads_back(suffix, tmp_path):
    mesh = trimesh.creation.icosphere(3, 40.0)
    write_mesh(tmp_path / f"mesh.{suffix}", mesh)
    back = trimesh.load_mesh(tmp_path / f"mesh.{suffix}")
    assert len(back.faces) == len(mesh.faces)
    assert back.is_watertight
    assert back.bounds == pytest.approx(mesh.bounds, rel=1e-5)
    assert back.volume == pytest.approx(mesh.volume, rel=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [f"mesh.{suffix}"]


def test_a_mesh_moves_with_its_world():
    mesh = trimesh.creation.box((1, 2, 3))
    transform = np.array([[0, -2.0, 0, 5], [2.0, 0, 0, 6], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    moved = transformed_mesh(mesh, transform)
    assert moved.extents == pytest.approx([4, 2, 6])
    assert moved.centroid == pytest.approx([5, 6, 7])
    assert moved.volume == pytest.approx(8 * 6)


def test_near_depths_are_bright_in_pictures():
    picture = depth_preview(np.array([[0.0, 10.0, 12.0, 14.0]]))
    assert picture[0, 0] == 0
    assert (np.diff(picture[0, 1:].astype(int)) < 0).all()
    assert (depth_preview(np.zeros((2, 2))) == 0).all()
    assert (depth_preview(np.full((2, 2), 3.0)) > 0).all()
