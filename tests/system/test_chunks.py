# SPDX-License-Identifier: Apache-2.0
"""Bounded memory, and memory that runs out: chunks become smaller, and the results stay the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import trimesh
from helpers.training import make_config, set_up
from nerfstudio.engine.trainer import Trainer

from pmni_nerfstudio.chunks import SMALLEST, Chunks, parse_memory, peak_bytes
from pmni_nerfstudio.cli import main
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.maps import RenderedView, limit_ray_memory, render_views
from pmni_nerfstudio.export.world_sdf import WorldSdf
from pmni_nerfstudio.fields.sdf_field import PmniField, PmniFieldConfig
from pmni_nerfstudio.geometry import ray_casting as raycast
from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
from pmni_nerfstudio.model import pmni_model

MIB = 1 << 20
T = TypeVar("T")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A few steps from given poses."""
    folder = tmp_path_factory.mktemp("trained")
    SynthCommand(out=folder / "scene", views=4, width=96, height=80, mesh_resolution=32).main()
    trainer = set_up(make_config("pmni-calibrated", folder / "scene", folder, 5))
    trainer.train()
    trainer.pipeline.eval()
    return trainer


@pytest.fixture
def trained(trained_once: Trainer) -> Trainer:
    """The run with the initial number of rays per chunk."""
    trained_once.pipeline.model.ray_chunks = Chunks(1 << 15, "rays")
    return trained_once


def field(encoding: str = "grid") -> PmniField:
    made = PmniField(PmniFieldConfig(encoding=encoding, grid_vertices=(17, 33)))
    made.set_progress(1.0)
    return made


def limited(f: Callable[..., T], most: int | None = None) -> tuple[Callable[..., T], list[int]]:
    """Wrap a function so that it runs out of GPU memory if its first argument has more than `most` rows or rays.

    Returns:
        The wrapped function, and the list to which its calls append their numbers of rows.
    """
    counts: list[int] = []

    def call(x: Any, *args: Any) -> T:
        if most is not None and len(x) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        counts.append(len(x))
        return f(x, *args)

    return call, counts


# ---- bounded memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("2G", 2 << 30), ("1.5g", 3 << 29), ("500M", 500 << 20), ("64K", 1 << 16), ("123", 123), (None, None)],
)
def test_memory_is_parsed(text: str | None, size: int | None):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "0", "0G", "-1G", "much", "1e9", "2T", "9" * 400 + "G"])
def test_an_invalid_amount_of_memory_is_refused(text: str):
    with pytest.raises(PmniError, match="max-memory: .*is not a memory size"):
        parse_memory(text)


def test_allocated_tensors_are_counted():
    kept = torch.ones(1000)

    def compute() -> torch.Tensor:
        view = kept.view(10, 100)  # no new memory
        twice = 2 * view  # 4000 bytes
        both = torch.cat([twice, twice])  # 8000 more
        del twice
        return both.double().sum()  # 16000, while the 8000 are there

    assert peak_bytes(compute) == pytest.approx(24_000, abs=16)


@pytest.mark.parametrize("encoding", ["grid", "dense", "hash"])
def test_points_at_once_are_bounded_and_the_mesh_is_the_same(encoding: str):
    model = field(encoding)
    limit = 4 * MIB
    sdf, counts = limited(model.sdf)
    free = extract_mesh(sdf, 96, progress=False)
    most, took = max(counts), peak_bytes(lambda: extract_mesh(sdf, 96, progress=False))
    assert took > limit
    counts.clear()
    bounded = extract_mesh(sdf, 96, max_memory=limit, progress=False)
    assert SMALLEST["points"] <= max(counts) < most / 2
    assert 0.3 * limit < peak_bytes(lambda: extract_mesh(sdf, 96, max_memory=limit, progress=False)) <= limit
    assert np.array_equal(free.faces, bounded.faces)
    # Kernels round the last points of a chunk differently.
    np.testing.assert_allclose(free.vertices, bounded.vertices, atol=1e-6)


def test_rays_at_once_are_bounded_and_the_views_are_the_same(trained: Trainer):
    limit = 5 * MIB
    model = trained.pipeline.model
    limit_ray_memory(model, None)
    most = model.ray_chunks.size
    free = render(trained)
    limit_ray_memory(model, limit)
    chunks = model.ray_chunks.size
    assert most == 1 << 15 and SMALLEST["rays"] <= chunks < 2000
    bounded = render(trained)
    for a, b in zip(free, bounded, strict=True):
        np.testing.assert_allclose(a.normals, b.normals, atol=1e-4)  # to rounding
        np.testing.assert_allclose(a.depth, b.depth, rtol=1e-5)
        assert (a.depth > 0).sum() > 500
    bundle = trained.pipeline.datamanager.train_dataset.cameras.generate_rays(camera_indices=0, keep_shape=True)
    image = 100 * 96 * 80  # bytes of whole images: outputs, and their chunks before they are joined

    def bytes_by(rays: int) -> int:
        model.ray_chunks = Chunks(rays, "rays")
        return peak_bytes(lambda: model.get_outputs_for_camera_ray_bundle(bundle))

    assert 0.3 * limit < bytes_by(chunks) <= limit + image < bytes_by(1 << 15)


def render(trained: Trainer) -> list[RenderedView]:
    dataset = trained.pipeline.datamanager.train_dataset
    return list(render_views(trained.pipeline.model, dataset.cameras, dataset.scene.world_from_unit))


def test_rays_are_cast_in_parts(monkeypatch: pytest.MonkeyPatch):
    rays = raycast.RayCaster(trimesh.creation.icosphere(subdivisions=3))
    origins = np.random.default_rng(0).normal(size=(10_000, 3)) * [2, 2, 0.1] - [0, 0, 4]
    directions = np.broadcast_to([0.0, 0.0, 1.0], origins.shape)
    whole = rays.cast(origins, directions)
    monkeypatch.setattr(raycast, "RAYS_PER_CALL", 999)
    parts = rays.cast(origins, directions)
    hit = np.isfinite(whole.distance)
    assert 500 < hit.sum() < 9500 and np.array_equal(whole.distance, parts.distance)
    assert np.array_equal(whole.face[hit], parts.face[hit]) and np.array_equal(whole.uv[hit], parts.uv[hit])


@pytest.mark.parametrize("command", ["export", "eval"])
def test_too_little_memory_is_a_one_line_error(
    command: str, trained: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = trained.config.get_base_dir() / "config.yml"
    words = [command, "--load-config", str(config), "--output-dir", str(tmp_path), "--resolution", "32"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--max-memory", "10K"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    enough = re.search(r"give at least (\d+M)", line)
    assert stop.value.code == 1 and "max-memory" in line and enough is not None
    assert not list(tmp_path.glob("*.ply"))
    main([*words, "--max-memory", enough[1]])
    assert (tmp_path / "mesh.ply").is_file()


# ---- out of GPU memory ----------------------------------------------------------------------------------------------


def warnings_in(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "Out of GPU memory" in line]


def test_a_mesh_is_the_same_after_running_out_of_memory(capsys: pytest.CaptureFixture[str]):
    whole = extract_mesh(field().sdf, 96, progress=False)
    assert warnings_in(capsys) == []
    sdf, counts = limited(field().sdf, most=10_000)
    mesh = extract_mesh(sdf, 96, progress=False)
    assert np.array_equal(mesh.faces, whole.faces)
    np.testing.assert_allclose(mesh.vertices, whole.vertices, atol=1e-6)
    assert [line.split("with ")[1].split()[0] for line in warnings_in(capsys)] == [
        "65,536",
        "32,768",
        "16,384",
        "8,192",
    ]
    assert max(counts) == 8192  # and nothing was evaluated twice
    free, all_counts = limited(field().sdf)
    extract_mesh(free, 96, progress=False)
    assert sum(counts) == sum(all_counts)


def test_views_are_the_same_after_running_out_of_memory(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole = render(trained)
    call, counts = limited(pmni_model.render_rays, most=3000)
    monkeypatch.setattr(pmni_model, "render_rays", call)
    for a, b in zip(whole, render(trained), strict=True):
        np.testing.assert_allclose(a.normals, b.normals, atol=1e-4)
        np.testing.assert_allclose(a.depth, b.depth, rtol=1e-5)
    assert len(warnings_in(capsys)) == 4 and max(counts) == 2048 and sum(counts) == 4 * 96 * 80


def test_nerfstudios_evaluation_is_the_same_after_running_out_of_memory(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """`ns-eval` and the evaluation images during training."""
    whole = trained.pipeline.get_average_eval_image_metrics()
    call, counts = limited(pmni_model.render_rays, most=3000)
    monkeypatch.setattr(pmni_model, "render_rays", call)
    less = trained.pipeline.get_average_eval_image_metrics()
    speed = {"num_rays_per_sec", "fps"}
    assert {k: v for k, v in less.items() if k not in speed} == pytest.approx(
        {k: v for k, v in whole.items() if k not in speed}, rel=1e-3
    )
    assert len(warnings_in(capsys)) == 4 and max(counts) == 2048
    call, _ = limited(pmni_model.render_rays, most=SMALLEST["rays"] - 1)
    monkeypatch.setattr(pmni_model, "render_rays", call)
    with pytest.raises(SystemExit) as stop:
        trained.pipeline.get_average_eval_image_metrics()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert stop.value.code == 1 and "out of GPU memory even with 256 rays at once" in line


def test_distances_at_points_are_the_same_after_running_out_of_memory(monkeypatch: pytest.MonkeyPatch):
    points = np.random.default_rng(0).uniform(-1.1, 1.1, (300_000, 3))
    whole = WorldSdf(field(), np.eye(4))(points)
    small = field()
    call, _ = limited(small.sdf_and_gradient, most=50_000)
    monkeypatch.setattr(small, "sdf_and_gradient", call)
    for a, b in zip(whole, WorldSdf(small, np.eye(4))(points)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_smallest_chunk_is_the_last_attempt(capsys: pytest.CaptureFixture[str]):
    sdf, _ = limited(field().sdf, most=SMALLEST["points"] - 1)
    with pytest.raises(PmniError, match=r"out of GPU memory even with 1,024 points at once; .*--device cpu") as error:
        extract_mesh(sdf, 96, progress=False)
    assert "\n" not in str(error.value) and len(warnings_in(capsys)) == 7


def test_other_errors_are_not_caught():
    def fail(_: int) -> None:
        raise RuntimeError("defect")

    with pytest.raises(RuntimeError, match="defect"):
        Chunks(1 << 20, "points").run(fail)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_training_ends_with_a_line_that_names_the_option_to_lower(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    SynthCommand(out=tmp_path / "scene", views=4, width=48, height=40, mesh_resolution=32).main()
    trainer = set_up(make_config("pmni-calibrated", tmp_path / "scene", tmp_path, 20))
    calls: list[int] = []

    def fifth(value: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return value

    model = trainer.pipeline.model
    if where == "backward":
        model.get_param_groups()["sdf"][0].register_hook(fifth)
    else:
        real = model.get_loss_dict
        monkeypatch.setattr(
            model, "get_loss_dict", lambda *a, **k: {n: v for n, v in real(fifth(a[0]), *a[1:], **k).items()}
        )
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert stop.value.code == 1 and "training stopped at step 4" in line
    assert "--pipeline.datamanager.train-num-rays-per-batch (2048 now)" in line
    state = torch.load(trainer.checkpoint_dir / "step-000000003.ckpt", weights_only=True)
    assert str(trainer.checkpoint_dir) in line and state["step"] == 3
