# SPDX-License-Identifier: Apache-2.0
"""neus-facto-small and the extraction of its surface, on converted scenes with ground truth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from helpers.scenes import SPHERE_CENTER, SPHERE_RADIUS, make_sphere
from helpers.training import set_up
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.models.neus_facto import NeuSFactoModel
from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.utils.eval_utils import eval_setup
from torch import Tensor

from pmni_nerfstudio.baselines.neus_facto import TorchSDFFieldConfig, neus_facto_small
from pmni_nerfstudio.baselines.surface import baseline_mesh, baseline_scene
from pmni_nerfstudio.commands.convert import ConvertCommand
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.training.trained_run import load_run

STEPS = 40


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sphere in sdfstudio's format."""
    folder = tmp_path_factory.mktemp("converted")
    make_sphere().write(folder / "scene")
    ConvertCommand(data=folder / "scene", output_dir=folder / "sdf").main()
    return folder / "sdf"


def make_config(data: Path, out: Path, steps: int = STEPS, auto_orient: bool = False) -> TrainerConfig:
    config = copy.deepcopy(neus_facto_small.config)
    config.data = config.pipeline.datamanager.data = data
    config.output_dir, config.experiment_name, config.timestamp = out, "test", "run"
    config.vis, config.max_num_iterations, config.machine.device_type = "tensorboard", steps, "cpu"
    config.pipeline.datamanager.train_num_rays_per_batch = 128
    config.pipeline.datamanager.dataparser.auto_orient = auto_orient
    field = config.pipeline.model.sdf_field
    field.log2_hashmap_size, field.max_res, field.num_levels = 12, 64, 4
    return config


@pytest.fixture(scope="module")
def trained(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, list[dict[str, float]]]:
    """Trained run and its losses by step."""
    trainer = set_up(make_config(converted, tmp_path_factory.mktemp("run")))
    losses: list[dict[str, float]] = []
    step = trainer.train_iteration

    def train_iteration(number: int) -> Any:
        result = step(number)
        losses.append({name: float(value) for name, value in result[1].items()})
        return result

    trainer.train_iteration = train_iteration
    trainer.train()
    return trainer, losses


def distances(mesh: trimesh.Trimesh, center: np.ndarray) -> np.ndarray:
    """Distances of the vertices from a point of the unit-sphere world, in units of the data."""
    return np.linalg.norm(mesh.vertices - in_data_world(center), axis=-1)


def in_data_world(point: np.ndarray) -> np.ndarray:
    world_from_unit = make_sphere().world_from_unit
    return world_from_unit[:3, :3] @ point + world_from_unit[:3, 3]


def test_losses_decrease_and_include_masks_and_normals(trained: tuple[Trainer, list[dict[str, float]]]):
    _, losses = trained
    assert losses[0].keys() == {"rgb_loss", "eikonal_loss", "fg_mask_loss", "normal_loss", "interlevel_loss"}
    for name in ("rgb_loss", "normal_loss", "fg_mask_loss"):
        first, last = (np.mean([loss[name] for loss in part]) for part in (losses[:5], losses[-5:]))
        assert last < 0.8 * first, name


def test_training_moves_the_surface_toward_the_sphere(
    trained: tuple[Trainer, list[dict[str, float]]], converted: Path, tmp_path: Path
):
    def error(pipeline: Pipeline) -> float:
        mesh = baseline_mesh(pipeline, 64, progress=False)
        return float(np.abs(distances(mesh, SPHERE_CENTER) - 55 * SPHERE_RADIUS).mean())

    start = set_up(make_config(converted, tmp_path)).pipeline.eval()
    mesh = baseline_mesh(start, 64, progress=False)
    assert mesh.is_watertight and mesh.volume > 0
    # The initial surface is an approximate ball at the center of the unit sphere, with radius `bias`.
    radii = distances(mesh, np.zeros(3))
    assert radii.mean() == pytest.approx(55 * 0.5, rel=0.2) and radii.std() < 0.3 * radii.mean()
    assert error(trained[0].pipeline.eval()) < 0.5 * error(start)


def test_a_loaded_run_is_unchanged_and_can_be_evaluated(trained: tuple[Trainer, list[dict[str, float]]]):
    trainer, _ = trained
    run = load_run(trainer.config.get_base_dir() / "config.yml", "cpu")
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    was, now = (p.model.field.forward_geonetwork(points)[:, 0] for p in (trainer.pipeline, run.pipeline))
    torch.testing.assert_close(now, was)
    assert run.checkpoint.stem == f"step-{STEPS - 1:09d}" and not any(
        "lpips" in name for name in run.pipeline.model.state_dict()
    )
    # Loaded as by ns-eval, with the evaluation data.
    metrics = eval_setup(run.config_path)[1].get_average_eval_image_metrics()
    assert metrics["psnr"] > 10 and 0 < metrics["ssim"] <= 1 and "lpips" not in metrics


def test_training_resumes_from_a_checkpoint(trained: tuple[Trainer, list[dict[str, float]]], tmp_path: Path):
    trainer, _ = trained
    config = make_config(trainer.config.data, tmp_path)
    config.load_dir = trainer.checkpoint_dir
    resumed = set_up(config)
    assert resumed._start_step == STEPS
    rates = [
        optimizers.optimizers["fields"].param_groups[0]["lr"] for optimizers in (resumed.optimizers, trainer.optimizers)
    ]
    assert rates[0] == rates[1] < 0.1 * neus_facto_small.config.optimizers["fields"]["optimizer"].lr


@pytest.mark.parametrize("auto_orient", [False, True])
def test_a_known_surface_is_extracted_in_the_world_of_the_data(converted: Path, tmp_path: Path, auto_orient: bool):
    pipeline = set_up(make_config(converted, tmp_path, auto_orient=auto_orient)).pipeline.eval()
    turned = pipeline.datamanager.train_dataset.metadata["transform"]
    assert (turned is not None) == auto_orient
    center = torch.from_numpy(SPHERE_CENTER).float()
    if turned is not None:
        center = turned[:, :3] @ center + turned[:, 3]

    def sphere(points: Tensor) -> Tensor:
        return torch.stack([(points - center).norm(dim=-1) - SPHERE_RADIUS, points[:, 0]], dim=-1)

    pipeline.model.field.forward_geonetwork = sphere
    mesh = baseline_mesh(pipeline, 64, progress=False)
    np.testing.assert_allclose(distances(mesh, SPHERE_CENTER), 55 * SPHERE_RADIUS, rtol=2e-3)
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * np.pi * (55 * SPHERE_RADIUS) ** 3, rel=0.01)
    scene, c2w = baseline_scene(pipeline)
    arrays = make_sphere().arguments()
    assert scene.root == (converted.parent / "scene").resolve()
    np.testing.assert_allclose(c2w, transform_poses(arrays["world_from_unit"], arrays["c2w"]), atol=1e-4)


def test_normal_loss_covers_only_known_normals(converted: Path, tmp_path: Path):
    pipeline = set_up(make_config(converted, tmp_path)).pipeline
    model = pipeline.model.train()
    rays, batch = pipeline.datamanager.next_train(0)
    assert isinstance(model, NeuSFactoModel) and batch["fg_mask"].shape == (len(rays), 1)
    known = batch["normal"].norm(dim=-1) > 0.5
    assert torch.equal(known, batch["fg_mask"][:, 0] > 0.5) and known.any() and not known.all()
    outputs = model(rays)
    perfect = torch.where(known[:, None], batch["normal"], torch.tensor([0.0, 0.0, 1.0]))
    losses = model.get_loss_dict({**outputs, "normal": perfect}, batch)
    assert losses["normal_loss"] == pytest.approx(0, abs=1e-6)
    nothing = model.get_loss_dict(outputs, {**batch, "normal": torch.zeros_like(batch["normal"])})
    assert "normal_loss" not in nothing


def test_the_field_is_twice_differentiable():
    """Autograd computes the normal, and the derivative of a loss on it with respect to the hash table."""
    torch.manual_seed(0)
    config = TorchSDFFieldConfig(
        use_grid_feature=True,
        num_layers=2,
        hidden_dim=16,
        geo_feat_dim=4,
        num_levels=3,
        max_res=32,
        log2_hashmap_size=8,
    )
    box = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    field = config.setup(aabb=box, num_images=1, spatial_distortion=torch.nn.Identity()).double()
    table = field.encoding.hash_table
    with torch.no_grad():
        table.mul_(1e3)  # large enough to contribute
        for parameter in field.glin0.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.rand(8, 3, dtype=torch.float64) * 1.9 - 0.95

    def normals(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_(True)
        return torch.autograd.grad(field.forward_geonetwork(at)[:, 0].sum(), at, create_graph=True)[0]

    step = 1e-6
    for axis in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[axis]
        slope = (field.forward_geonetwork(x + shift) - field.forward_geonetwork(x - shift))[:, 0] / (2 * step)
        torch.testing.assert_close(normals(x)[:, axis], slope, atol=1e-5, rtol=1e-4)

    def loss() -> Tensor:
        return ((normals(x).norm(dim=-1) - 1) ** 2).sum()

    (gradient,) = torch.autograd.grad(loss(), table)
    direction = torch.randn_like(table)
    with torch.no_grad():
        table.add_(step * direction)
    above = loss().item()
    with torch.no_grad():
        table.sub_(2 * step * direction)
    assert (above - loss().item()) / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: None, "meta_data.json: does not exist; write it with `pmni convert"),
        (lambda text: text.replace("foreground_mask", "other"), "frames without foreground_mask"),
    ],
)
def test_other_data_is_rejected_in_one_line(
    tmp_path: Path,
    converted: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[str], str | None],
    message: str,
):
    text = spoil((converted / "meta_data.json").read_text())
    if text is not None:
        (tmp_path / "meta_data.json").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        set_up(make_config(tmp_path, tmp_path / "out"))
    assert exit_.value.code == 1 and message in capsys.readouterr().err
