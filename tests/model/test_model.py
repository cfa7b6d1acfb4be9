# SPDX-License-Identifier: Apache-2.0
"""Training end to end on a sphere of known radius, with every option of the training step."""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from helpers.holes import scene_with_holes
from helpers.scenes import SPHERE_CENTER, SPHERE_RADIUS, hit_sphere, make_sphere
from helpers.training import make_config, set_up

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.fields.sdf_field import PmniFieldConfig
from pmni_nerfstudio.model.initialization import Initialization
from pmni_nerfstudio.model.loss_schedule import LossWeights
from pmni_nerfstudio.pmni_config import pmni, pmni_calibrated, pmni_original
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.training import initialization


def true_sdf(points: torch.Tensor) -> torch.Tensor:
    return (points - torch.tensor(SPHERE_CENTER).to(points)).norm(dim=-1) - SPHERE_RADIUS


def rotation_error_deg(c2w: np.ndarray, truth: np.ndarray) -> float:
    """Mean angle between orientations after the best common rotation, in degrees."""
    u, _, vt = np.linalg.svd(np.einsum("nij,nkj->ik", truth[:, :3, :3], c2w[:, :3, :3]))
    common = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    cosine = (np.einsum("nij,nij->n", common @ c2w[:, :3, :3], truth[:, :3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())


@pytest.mark.parametrize(("start", "mae_deg", "depth_px"), [("auto", 0.7, 0.16), ("hull", 1.3, 0.09)])
def test_calibrated_training_recovers_the_sphere(
    start: str, mae_deg: float, depth_px: float, sphere_folder: Path, tmp_path: Path
):
    """At 48x40 pixels the hull is already a good sphere, and a surface integrated from normals shows the mask pixels."""
    trainer = set_up(make_config("pmni-calibrated", sphere_folder, tmp_path, 250, pipeline__model__start=start))
    trainer.train()
    model = trainer.pipeline.model.eval()
    # Rendered surface points lie on the sphere: depths are along unit rays, from the true poses.
    metrics, images = trainer.pipeline.get_eval_image_metrics_and_images(0)
    assert metrics["normal_mae_deg"] < mae_deg and metrics["mask_iou"] > 0.98
    for image in images.values():
        assert image.ndim == 3 and image.shape[-1] == 3 and image.min() >= 0 and image.max() <= 1
    errors_px, outputs = [], {}
    for camera, _ in trainer.pipeline.datamanager.fixed_indices_eval_dataloader:
        outputs = model.get_outputs_for_camera(camera)
        bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
        exact, _ = hit_sphere(bundle.origins.double().numpy(), bundle.directions.double().numpy())
        seen = np.isfinite(exact) & (outputs["accumulation"][..., 0].numpy() > 0.5)
        error = np.abs(outputs["depth"][..., 0].numpy() - exact)[seen]
        errors_px.append(error.mean() / (15.0 / float(camera.fx[0])))
        assert seen.sum() > 300
    assert len(errors_px) == 7 and np.mean(errors_px) < depth_px
    for name in ("rgb", "normals"):
        assert outputs[name].shape[-1] == 3 and 0 <= outputs[name].min() and outputs[name].max() <= 1
    # Calibrated poses do not change.
    scene = trainer.pipeline.datamanager.train_dataset.scene
    np.testing.assert_allclose(model.camera_optimizer.c2w_opencv_double(), scene.c2w, atol=2e-5)


@pytest.mark.slow
def test_rough_poses_improve(tmp_path: Path):
    SynthCommand(out=tmp_path / "scene", shape="figure", views=12, width=96, height=80, rotation_noise_deg=5).main()
    config = make_config("pmni", tmp_path / "scene", tmp_path, 300)
    trainer = set_up(config)
    truth = np.load(tmp_path / "scene" / "truth" / "truth.npz")["c2w"]
    poses = trainer.pipeline.model.camera_optimizer
    before = rotation_error_deg(poses.c2w_opencv_double(), truth)
    trainer.train()
    after = rotation_error_deg(poses.c2w_opencv_double(), truth)
    assert 3 < before < 8 and after < 0.5 * before


OPTIONS = {
    "dense": {"pipeline__model__sdf_field": PmniFieldConfig(encoding="dense")},
    "hash": {"pipeline__model__sdf_field": PmniFieldConfig(encoding="hash", hash_levels=4, hash_log2_table=12)},
    "analytic": {"pipeline__model__gradients": "analytic"},
    "numerical": {"pipeline__model__gradients": "numerical"},
    "single rays": {"pipeline__datamanager__pixel_sampler__patch_size": 1},
    "large patches": {"pipeline__datamanager__pixel_sampler__patch_size": 5},
    "sphere start": {"pipeline__model__start": "sphere"},
    "l1": {"pipeline__model__normal_loss": "l1"},
    "angular": {"pipeline__model__normal_loss": "angular"},
    "held out": {"pipeline__datamanager__dataparser__exclude_views": (1, 4)},
    "half size": {"pipeline__datamanager__dataparser__scale_factor": 0.5},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "dense" else ()) for n in OPTIONS])
def test_options_train(name: str, sphere_folder: Path, tmp_path: Path):
    steps = 110
    trainer = set_up(make_config("pmni", sphere_folder, tmp_path, steps, **OPTIONS[name]))
    trainer.pipeline.datamanager.train_pixel_sampler.set_num_rays_per_batch(450)
    before, _ = trainer.pipeline.get_eval_image_metrics_and_images(0)
    losses = []
    for step in range(steps):
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, callback.where_to_run[0])
        loss, loss_dict, _ = trainer.train_iteration(step)
        losses.append(float(loss_dict["normal_loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:8])
    # There is little to gain: the error of the sphere's hull is 4 to 11 degrees on the coarsest level.
    after, _ = trainer.pipeline.get_eval_image_metrics_and_images(0)
    assert after["normal_mae_deg"] < 0.85 * before["normal_mae_deg"]


def test_every_loss_has_a_weight_and_is_not_computed_without(sphere_folder: Path, tmp_path: Path):
    everything = LossWeights(**{name: (0.1,) for name in LossWeights().weights_at(0)})
    config = make_config("pmni", sphere_folder, tmp_path, 10, pipeline__model__loss_weights=everything)
    trainer = set_up(config)
    model = trainer.pipeline.model
    bundle, batch = trainer.pipeline.datamanager.next_train(0)
    losses = model.get_loss_dict(model(bundle), batch)
    assert set(losses) == {f"{name}_loss" for name in everything.weights_at(0)}
    assert all(torch.isfinite(loss) for loss in losses.values())
    # The hull of a sphere is nearly the sphere, so that depth maps scaled onto it lie on it.
    assert losses["sdf_on_points_loss"] / 0.1 < 0.1
    sum(losses.values()).backward()
    for name, group in model.get_param_groups().items():
        if name != "variance":
            assert any(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in group), name
    model.config.loss_weights = LossWeights(mask=(0.0,))
    bundle, batch = trainer.pipeline.datamanager.next_train(1)
    assert set(model.get_loss_dict(model(bundle), batch)) == {"normal_loss", "eikonal_loss"}


def test_normal_and_depth_losses_ignore_holes(tmp_path: Path):
    """Both are those of the batch without the pixels in holes; the mask loss is that of the whole batch."""
    scene_with_holes(make_sphere()).write(tmp_path / "scene")
    weights = LossWeights(normal=(1.0,), mask=(1.0,), depth=(1.0,))
    options = {"pipeline__model__loss_weights": weights, "pipeline__model__start": "hull"}
    trainer = set_up(make_config("pmni-calibrated", tmp_path / "scene", tmp_path, 10, **options))
    model = trainer.pipeline.model
    bundle, batch = trainer.pipeline.datamanager.next_train(0)
    outputs = model(bundle)
    losses = model.get_loss_dict(outputs, batch)
    hole = (batch["mask"][:, 0] > 0) & ~batch["normal"].any(dim=-1)
    assert 0.05 < hole.sum() / (batch["mask"] > 0).sum() < 0.4
    view = batch["indices"][:, 0]
    rendered = (model.camera_optimizer.w2c_opencv()[view, :, :3] * outputs["normal_world"][:, None]).sum(dim=-1)
    opaque = (batch["mask"][:, 0] > 0) & outputs["valid"][:, 0].bool() & (outputs["accumulation"][:, 0] > 0.5)
    assert (opaque & hole).any()
    error = (rendered - batch["normal"]).square().sum(dim=-1)
    torch.testing.assert_close(losses["normal_loss"], error[opaque & ~hole].mean())
    wrong = dict(batch, mask=torch.where(hole[:, None], 0.0, batch["mask"]))
    cut = model.get_loss_dict(outputs, wrong)
    torch.testing.assert_close(cut["normal_loss"], losses["normal_loss"])
    torch.testing.assert_close(cut["depth_loss"], losses["depth_loss"])
    assert cut["mask_loss"] > losses["mask_loss"]


def test_training_recovers_a_sphere_with_holes(tmp_path: Path):
    """A third of each mask has no normals, in other places in every view."""
    scene_with_holes(make_sphere(), 0.25).write(tmp_path / "scene")
    trainer = set_up(make_config("pmni-calibrated", tmp_path / "scene", tmp_path, 150))
    trainer.train()
    trainer.pipeline.model.eval()
    metrics = trainer.pipeline.get_average_eval_image_metrics()
    assert metrics["normal_mae_deg"] < 1.0 and metrics["mask_iou"] > 0.98
    # Also where no normals were given.
    outputs, error_px = trainer.pipeline.model, []
    for camera, _ in trainer.pipeline.datamanager.fixed_indices_eval_dataloader:
        found = outputs.get_outputs_for_camera(camera)
        bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
        exact, _ = hit_sphere(bundle.origins.double().numpy(), bundle.directions.double().numpy())
        on = np.isfinite(exact) & (found["accumulation"][..., 0].numpy() > 0.5)
        error_px.append(np.abs(found["depth"][..., 0].numpy() - exact)[on].mean() / (15.0 / float(camera.fx[0])))
    assert np.mean(error_px) < 0.25


@pytest.mark.slow
def test_masks_enlarge_a_surface_that_is_too_small(sphere_folder: Path, tmp_path: Path):
    """Mask rays that miss the surface get no gradient from rendering, but must attract it."""
    config = make_config(
        "pmni-calibrated",
        sphere_folder,
        tmp_path,
        200,
        pipeline__model__loss_weights=LossWeights(mask=(1.0,)),
        pipeline__model__start="sphere",
        pipeline__model__sdf_field=PmniFieldConfig(encoding="grid", sphere_radius=0.5),
    )
    trainer = set_up(config)
    before = trainer.pipeline.get_average_eval_image_metrics()["mask_iou"]
    trainer.train()
    after = trainer.pipeline.get_average_eval_image_metrics()["mask_iou"]
    assert before < 0.6 and after > 0.8


def test_warm_start_takes_over_poses_and_surface(sphere_folder: Path, tmp_path: Path):
    trainer = set_up(make_config("pmni", sphere_folder, tmp_path, 5))
    model = trainer.pipeline.model
    axis = torch.linspace(-1, 1, 97)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    scene = trainer.pipeline.datamanager.train_dataset.scene
    turned = scene.c2w.copy()
    turned[:, :3, :] = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]]) @ turned[:, :3, :]
    model.warm_start(Initialization(c2w=turned, sdf=true_sdf(grid)))
    np.testing.assert_allclose(model.camera_optimizer.c2w_opencv_double(), turned, atol=1e-5)
    model.field.set_progress(1.0)
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    assert (model.field.sdf(points) - true_sdf(points)).abs().mean() < 2e-3


def test_views_rejected_by_registration_are_excluded_from_training(sphere_folder: Path, tmp_path: Path, monkeypatch):
    """They are neither sampled nor moved, also after a resume; the other poses move."""
    rejected, kept = 3, [0, 1, 2, 4, 5, 6]
    axis = torch.linspace(-1, 1, 65)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)

    def registered(views: Views, c2w: np.ndarray, *_) -> Initialization:
        moved = c2w.copy()
        moved[:, :3, 3] += 0.02 * np.random.default_rng(0).standard_normal((7, 3))
        return Initialization(moved, true_sdf(grid), kind="surface", inlier_views=np.arange(7) != rejected)

    monkeypatch.setattr(initialization, "initialize_by_registration", registered)
    how = {"pipeline__model__registration": True, "pipeline__model__steps_per_pose_step": 5}
    first = set_up(make_config("pmni", sphere_folder, tmp_path, 8, **how))
    before = first.pipeline.model.camera_optimizer.c2w_opencv_double()
    first.train()
    config = make_config("pmni", sphere_folder, tmp_path, 16, load_dir=first.checkpoint_dir, timestamp="on", **how)
    second = set_up(config)
    for trainer in (first, second):
        _, batch = trainer.pipeline.datamanager.next_train(0)
        assert set(batch["indices"][:, 0].tolist()) == set(kept)
    second.train()
    after = second.pipeline.model.camera_optimizer.c2w_opencv_double()
    assert (np.abs(after - before)[kept].max(axis=(1, 2)) > 1e-3).all()
    np.testing.assert_allclose(after[rejected], before[rejected], atol=1e-6)


def test_resume_ends_at_max_num_iterations(sphere_folder: Path, tmp_path: Path):
    first = set_up(make_config("pmni", sphere_folder, tmp_path, 30))
    first.train()
    config = make_config("pmni", sphere_folder, tmp_path, 45)
    config.load_dir, config.timestamp = first.checkpoint_dir, "resumed"
    second = set_up(config)
    before = first.pipeline.model.state_dict()
    for name, value in second.pipeline.model.state_dict().items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, before[name], msg=name)
    second.train()
    assert second.step == 44  # the last of 45 steps
    assert second.pipeline.model.fraction == pytest.approx(44 / 45)


@pytest.mark.parametrize(
    ("converged_deg", "steps", "words"), [(180.0, 60, "Converged after 60"), (1e-9, 80, "Not conv")]
)
def test_training_stops_once_it_has_converged(
    converged_deg: float, steps: int, words: str, sphere_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """It stops at the second check after the schedule's end, or at the maximum of steps, and the log says which."""
    how = {"pipeline__model__schedule_steps": 40, "pipeline__model__converged_normals_deg": converged_deg}
    trainer = set_up(make_config("pmni-calibrated", sphere_folder, tmp_path, 80, **how))
    trainer.train()
    assert trainer.step == steps - 1
    assert words in capsys.readouterr().out


@pytest.mark.slow
def test_a_plane_sweep_is_trained_gently_also_after_a_resume(sphere_folder: Path, tmp_path: Path):
    """Sharpness and learning rate depend on the initialization found, which the checkpoint must preserve."""
    first = set_up(make_config("pmni-calibrated", sphere_folder, tmp_path, 10, pipeline__model__start="sweep"))
    first.train()
    config = make_config("pmni-calibrated", sphere_folder, tmp_path, 20, pipeline__model__start="sweep")
    config.load_dir, config.timestamp = first.checkpoint_dir, "resumed"
    second = set_up(config)
    second.train()
    hull = set_up(make_config("pmni-calibrated", sphere_folder, tmp_path, 20, pipeline__model__start="hull"))
    hull.train()
    rates = [t.optimizers.optimizers["sdf"].param_groups[0]["lr"] for t in (second, hull)]
    assert rates[0] == pytest.approx(0.1 * rates[1])
    for trainer, least in ((second, 1000.0), (hull, 100.0)):
        model = trainer.pipeline.model
        model.set_fraction(0.0)
        assert float(model.field.inv_s()) == pytest.approx(least, rel=1e-3)


def test_the_original_recipe_runs_through_its_stages(sphere_folder: Path, tmp_path: Path):
    """It starts from a ring of cameras and a sphere, ignoring the scene's poses; each third has its own losses."""
    config = make_config("pmni-original", sphere_folder, tmp_path, 30)
    config.pipeline.datamanager.train_num_rays_per_batch = 450
    trainer = set_up(config)
    model = trainer.pipeline.model
    ring = model.views.c2w
    assert rotation_error_deg(ring, trainer.pipeline.datamanager.train_dataset.scene.c2w) > 1
    np.testing.assert_allclose(model.camera_optimizer.c2w_opencv_double(), ring, atol=1e-5)
    names = []
    for fraction in (0.0, 0.4, 0.9):
        model.set_fraction(fraction)
        bundle, batch = trainer.pipeline.datamanager.next_train(0)
        names.append(set(model.get_loss_dict(model(bundle), batch)))
    common = {"mask_loss", "eikonal_loss"}
    assert names == [common | {"depth_loss"}, common | {"depth_loss", "normal_loss"}, common | {"normal_loss"}]
    trainer.train()
    assert trainer.step == 29
    assert not np.allclose(model.camera_optimizer.c2w_opencv_double(), ring, atol=1e-4)  # Adam moves them


def test_missing_depth_maps_are_reported_in_one_line(
    tmp_path: Path, sphere_folder: Path, capsys: pytest.CaptureFixture
):
    import shutil

    shutil.rmtree(sphere_folder / "integration")
    config = make_config("pmni", sphere_folder, tmp_path, 5, pipeline__model__loss_weights=LossWeights(depth=(1.0,)))
    with pytest.raises(SystemExit) as stop:
        set_up(config)
    assert stop.value.code == 1
    assert "needs depth maps" in capsys.readouterr().err.splitlines()[-1]


def test_methods_are_registered():
    from nerfstudio.configs.method_configs import all_methods

    assert {"pmni", "pmni-calibrated", "pmni-original"} <= set(all_methods)
    assert pmni.config.pipeline.model.camera_optimizer.mode == "SE3"
    assert pmni_calibrated.config.pipeline.model.camera_optimizer.mode == "off"


@pytest.mark.parametrize("method", [pmni, pmni_calibrated, pmni_original])
def test_every_option_has_a_help_line(method):
    """Every option of `ns-train METHOD --help` has a description besides its default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(type(method.config), default=method.config)
    helps = {action.option_strings[0]: str(action.help) for action in all_actions(parser)}
    assert {"--pipeline.model.sdf-field.encoding", "--pipeline.datamanager.pixel-sampler.patch-size"} <= set(helps)
    bare = [name for name, text in helps.items() if not re.sub(r"\[/?\w+\]|\(default.*", "", text, flags=re.S).strip()]
    assert not bare


def all_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Actions of a parser and its subcommands."""
    found = []
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for name in action.choices:
                found += all_actions(action.choices[name])
        elif action.option_strings:
            found.append(action)
    return found
