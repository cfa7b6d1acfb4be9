# SPDX-License-Identifier: Apache-2.0
"""Normals that are solved again from images before training: the alternation with the surface, and what uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.photometric import angles_deg, make_capture
from helpers.registration import true_surface
from helpers.training import make_config, set_up

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.data.split_views import SplitViews, select_views
from pmni_nerfstudio.evaluation.reconstruction import reconstruction_from_run
from pmni_nerfstudio.model.initialization import Initialization
from pmni_nerfstudio.pmni_pipeline import PmniPipeline
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.training import photometric_normals
from pmni_nerfstudio.training.photometric_normals import FromImages, ImageNormals, refine_from_images


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    SynthCommand(out=folder, shape="blob", views=6, width=56, height=48, mesh_resolution=64).main()
    return folder


def flattened(scene: Scene) -> np.ndarray:
    """Normals that lean to the viewer, as those of concave parts do."""
    normals = scene.normals.astype(np.float32) - np.where(scene.valid[..., None], np.array([0, 0, 0.5], np.float32), 0)
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)


def all_views(scene: Scene, normals: np.ndarray) -> SplitViews:
    views = select_views(scene, range(scene.num_views), scene.c2w, True)  # type: ignore[arg-type]
    object.__setattr__(views, "normals", normals.astype(np.float16))
    return views


def answers(found: ImageNormals | None) -> FromImages:
    """A solver that always says the same."""

    def solver(views: SplitViews, c2w: np.ndarray, mesh: Any, brightest: float) -> ImageNormals | None:
        return found

    return solver


def unchanged_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photometric_normals, "alternate", lambda _, poses, *a, surface, **k: (poses, surface))


def test_surface_and_normals_follow_the_images(scene: Path, monkeypatch: pytest.MonkeyPatch):
    """The solver's answer is right; surface and normals approach it from a shape that is too small."""
    given = read_scene(scene)
    assert given.c2w is not None
    monkeypatch.setattr(photometric_normals, "_ROUNDS", 1)
    truth, lines, meshes, poses = true_surface(n=97), [], [], given.c2w

    def solver(views: SplitViews, c2w: np.ndarray, mesh: Any, brightest: float) -> ImageNormals:
        np.testing.assert_allclose(c2w, poses, atol=1e-9)
        meshes.append(mesh)
        return ImageNormals(list(given.normals.astype(np.float32)), 0.1 / len(meshes), 0.2)

    biased = all_views(given, flattened(given))
    start = Initialization(given.c2w, torch.from_numpy(truth.sdf + 0.02), "surface")
    found = refine_from_images(biased, start, solver, lines.append)
    assert found is not None and len(lines) == 1 and "interreflection" in lines[0]
    np.testing.assert_allclose(found.normals, given.normals, atol=1e-3)

    def error(surface: Surface) -> float:
        points, _ = truth.samples(2000, np.random.default_rng(0))
        return float(np.abs(surface.raycaster.distance(points)).mean())

    assert error(Surface(found.initialization.sdf.numpy())) < 0.4 * error(Surface(start.sdf.numpy()))


def test_pixels_that_the_images_do_not_tell_keep_their_normals(scene: Path, monkeypatch: pytest.MonkeyPatch):
    unchanged_surface(monkeypatch)
    given = read_scene(scene)
    assert given.c2w is not None
    biased, right = all_views(given, flattened(given)), given.normals.astype(np.float32)
    right[:, :20] = 0
    outside = right.copy()
    outside[~given.valid] = 1  # what is off the mask stays off
    start = Initialization(given.c2w, torch.from_numpy(true_surface().sdf), "surface")
    found = refine_from_images(biased, start, answers(ImageNormals(list(outside), 0.1, 0.2)), lambda _: None)
    assert found is not None
    np.testing.assert_array_equal(found.normals[:, :20], biased.normals[:, :20])
    np.testing.assert_allclose(found.normals[:, 20:], right[:, 20:], atol=1e-3)


def test_normals_stay_if_the_images_are_explained_worse(scene: Path, monkeypatch: pytest.MonkeyPatch):
    unchanged_surface(monkeypatch)
    given, lines = read_scene(scene), []
    assert given.c2w is not None
    start = Initialization(given.c2w, torch.from_numpy(true_surface().sdf), "surface")
    normals = list(given.normals.astype(np.float32))
    worse = refine_from_images(
        all_views(given, given.normals), start, answers(ImageNormals(normals, 0.2, 0.1)), lines.append
    )
    assert worse is None and len(lines) == 2 and all("left out" in line for line in lines)
    assert refine_from_images(all_views(given, given.normals), start, answers(None), lines.append) is None
    hull = Initialization(given.c2w, start.sdf)
    assert (
        refine_from_images(
            all_views(given, given.normals), hull, answers(ImageNormals(normals, 0.1, 0.2)), lines.append
        )
        is None
    )


def test_training_and_evaluation_use_the_refined_normals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """From a capture on disk, with a view held out, through a checkpoint."""
    unchanged_surface(monkeypatch)
    capture = make_capture(num_lights=12, num_views=5)
    (tmp_path / "capture").mkdir()
    main(["photometric", str(capture.write_json(tmp_path / "capture")), str(tmp_path / "scene")])
    given = read_scene(tmp_path / "scene")
    changes = {"pipeline__model__hull_resolution": 33, "pipeline__datamanager__dataparser__exclude_views": (2,)}

    def run(name: str, **more: Any) -> Any:
        return set_up(make_config("pmni-calibrated", given.root, tmp_path / name, 2, **changes, **more))

    monkeypatch.setattr(photometric_normals, "_ROUNDS", 0)  # the residual then stays, and is lowered here
    solve = PmniPipeline.normals_from_images

    def with_less_residual(*args: Any, **options: Any) -> ImageNormals | None:
        found = solve(*args, **options)
        return None if found is None else found._replace(residual=0.0)

    monkeypatch.setattr(PmniPipeline, "normals_from_images", with_less_residual)
    off = run("off", pipeline__model__refine_normals=False)
    np.testing.assert_array_equal(off.pipeline._scene.normals, given.normals)
    first = run("on")
    normals = first.pipeline._scene.normals
    trained = [0, 1, 3, 4]
    assert np.abs(normals[trained] - given.normals[trained]).max() > 1e-3
    np.testing.assert_array_equal(normals[2], given.normals[2])
    np.testing.assert_array_equal(normals.any(axis=-1), given.normals.any(axis=-1))
    assert angles_deg(normals[given.valid].astype(float), capture.truth.normals[given.valid]).mean() < 3
    np.testing.assert_array_equal(first.pipeline.model.views.normals, normals[trained])
    first.train()
    resumed = run("on", load_dir=first.checkpoint_dir, timestamp="resumed")
    np.testing.assert_array_equal(resumed.pipeline._scene.normals, normals)
    evaluated, _ = reconstruction_from_run(first.base_dir / "config.yml", 32, "cpu")
    np.testing.assert_array_equal(evaluated.normals, normals)
    # Without the images nothing changes, and a line says so.
    (tmp_path / "capture").rename(tmp_path / "moved")
    capsys.readouterr()
    np.testing.assert_array_equal(run("without").pipeline._scene.normals, given.normals)
    assert "images are not found" in " ".join(capsys.readouterr().out.split())
