# SPDX-License-Identifier: Apache-2.0
"""Normal integration against surfaces known in closed form, and `pmni integrate`."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers.holes import holes_of, scene_with_holes
from helpers.scenes import make_sphere

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.data.depths import read_depths
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.integration import bilateral
from pmni_nerfstudio.integration.bilateral import integrate_normals

K = np.array([[900.0, 0.0, 38.0], [0.0, 860.0, 27.0], [0.0, 0.0, 1.0]])
HEIGHT, WIDTH = 64, 90


def rays() -> np.ndarray:
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return np.linalg.solve(K, np.stack([x, y, np.ones_like(x)]).reshape(3, -1)).T.reshape(HEIGHT, WIDTH, 3)


def sphere(
    radius: float = 1.0, distance: float = 30.0, grazing: float = 0.15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth (NaN off the mask), normals, mask."""
    p = rays()
    a, b, c = (p**2).sum(-1), p[..., 2] * distance, distance**2 - radius**2
    root = b**2 - a * c
    depth = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.nan)
    normals = (p * depth[..., None] - [0, 0, distance]) / radius
    mask = (root > 0) & (np.abs((normals * p).sum(-1)) > grazing)
    return depth, np.where(mask[..., None], normals, 0), mask


def relative_error(found: np.ndarray, truth: np.ndarray, on: np.ndarray) -> np.ndarray:
    """Relative errors of depths at some pixels, after division by the median ratio."""
    return np.abs(found[on] * np.median(truth[on] / found[on]) / truth[on] - 1)


def test_sphere_with_unequal_focal_lengths_and_a_principal_point_off_the_middle():
    truth, normals, mask = sphere()
    depth = integrate_normals(normals, mask, K)
    assert np.isnan(depth[~mask]).all()
    assert np.log(depth[mask]).mean() == pytest.approx(0, abs=1e-9)
    # The sphere's radius is 1/30 of its depth.
    assert relative_error(depth, truth, mask).mean() < 0.01 / 30
    swapped = K.copy()
    swapped[0, 0], swapped[1, 1] = K[1, 1], K[0, 0]
    assert relative_error(integrate_normals(normals, mask, swapped), truth, mask).mean() > 0.01 / 30


def test_plane_is_exact():
    n = np.array([0.5, -0.3, -0.8]) / np.linalg.norm([0.5, -0.3, -0.8])
    truth = (n[2] * 10.0) / (rays() @ n)
    mask = np.ones((HEIGHT, WIDTH), dtype=bool)
    depth = integrate_normals(np.broadcast_to(n, (HEIGHT, WIDTH, 3)), mask, K)
    assert relative_error(depth, truth, mask).max() < 2e-4


def test_discontinuities_are_kept_unless_k_is_zero():
    """A sphere in front of a wall: connected in the mask, discontinuous in depth."""
    truth, normals, mask = sphere(grazing=0.0)
    everywhere = np.ones_like(mask)
    wall = np.where(mask[..., None], normals, [0.0, 0.0, -1.0])
    broken = relative_error(integrate_normals(wall, everywhere, K), truth, mask).mean()
    smooth = relative_error(integrate_normals(wall, everywhere, K, k=0.0), truth, mask).mean()
    assert broken < 0.6 * smooth


def test_first_round_equals_a_dense_solution():
    rng = np.random.default_rng(0)
    normals = rng.normal([0.2, 0.1, -1.0], 0.2, (5, 6, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    mask = np.ones((5, 6), dtype=bool)
    mask[0, 0] = mask[3, 2] = False
    found = np.log(integrate_normals(normals, mask, K, max_rounds=1))
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    rows, rights = [], []
    for y, x in np.argwhere(mask):
        p = np.linalg.solve(K, [x, y, 1.0])
        along = normals[y, x] @ p
        for dy, dx, f, c in ((0, 1, K[0, 0], 0), (0, -1, K[0, 0], 0), (1, 0, K[1, 1], 1), (-1, 0, K[1, 1], 1)):
            if not (0 <= y + dy < 5 and 0 <= x + dx < 6) or not mask[y + dy, x + dx]:
                continue
            row = np.zeros(mask.sum())
            row[number[y + dy, x + dx]] += (dy + dx) * f * along
            row[number[y, x]] -= (dy + dx) * f * along
            rows.append(row)
            rights.append(-normals[y, x, c])
    dense = np.linalg.lstsq(np.array(rows), np.array(rights), rcond=None)[0]
    np.testing.assert_allclose(found[mask], dense - dense.mean(), atol=1e-7)


def test_disconnected_parts_and_isolated_pixels():
    truth, normals, mask = sphere()
    split = mask.copy()
    split[:, 40] = False  # two halves
    split[5, :] = False
    split[5, 60] = mask[5, 60]
    split[0, 0] = True  # an isolated pixel
    normals = normals.copy()
    normals[0, 0] = [0, 0, -1]
    depth = integrate_normals(normals, split, K)
    assert np.isfinite(depth[split]).all() and (depth[split] > 0).all()
    assert depth[0, 0] == 1.0
    left = split & (np.arange(WIDTH) < 40) & (np.arange(HEIGHT)[:, None] > 5)
    assert relative_error(depth, truth, left).mean() < 0.01 / 30
    assert np.isnan(integrate_normals(normals, np.zeros_like(mask), K)).all()


def test_reusing_a_factorization_changes_nothing(monkeypatch):
    truth, normals, mask = sphere()
    fast = integrate_normals(normals, mask, K)
    monkeypatch.setattr(bilateral, "cg", lambda matrix, right, x0, **_: (x0, 1))
    always_new = integrate_normals(normals, mask, K)
    np.testing.assert_allclose(fast[mask], always_new[mask], rtol=2e-5)


@pytest.mark.parametrize("poses", [True, False])
def test_command_writes_what_the_depth_losses_read(sphere_folder, sphere_scene, poses, tmp_path, capsys):
    folder = sphere_folder
    shutil.rmtree(folder / "integration")
    if not poses:
        folder = tmp_path / "bare"
        s = sphere_scene
        write_scene(
            folder, names=s.names, K=np.repeat(s.K[:1], len(s.K), 0), c2w=None, world_from_unit=s.world_from_unit,
            masks=s.masks, normals=s.normals.astype(np.float32),
        )  # fmt: skip
    main(["integrate", str(folder)])
    scene = read_scene(folder)
    depths = read_depths(scene)
    assert depths.shape == scene.masks.shape
    assert ((depths > 0) == scene.masks).all()
    x, y = np.meshgrid(np.arange(scene.width), np.arange(scene.height))
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    along_ray = np.load(folder / "integration" / "perspective" / f"{scene.names[1]}.npy")
    stretch = np.linalg.norm(pixels @ np.linalg.inv(scene.K[1]).T, axis=-1)
    np.testing.assert_allclose(along_ray, depths[1] * stretch, rtol=1e-5)
    with pytest.raises(SystemExit) as caught:
        main(["integrate", str(folder)])
    assert caught.value.code == 1
    assert "--overwrite" in capsys.readouterr().err
    main(["integrate", str(folder), "--overwrite"])


def test_each_part_has_a_mean_log_depth_of_zero():
    _, normals, mask = sphere()
    split = mask.copy()
    split[:, 40] = False
    depth = integrate_normals(normals, split, K)
    columns = np.arange(WIDTH)
    for part in (split & (columns < 40), split & (columns > 40)):
        assert np.log(depth[part]).mean() == pytest.approx(0, abs=1e-9)


def test_holes_leave_the_depth_around_them_as_it_is():
    truth, normals, mask = sphere()
    hole = holes_of(mask[None], 0.3, (3, 8))[0]
    assert 0.25 < hole.sum() / mask.sum() < 0.6
    whole = integrate_normals(normals, mask, K)
    depth = integrate_normals(np.where(hole[..., None], 0, normals), mask, K)
    assert np.isfinite(depth[mask]).all() and np.isnan(depth[~mask]).all()
    valid = mask & ~hole
    assert relative_error(depth, truth, valid).mean() < 0.03 / 30  # 3% of the radius; the radius is 1/30 of the depth
    assert relative_error(whole, truth, valid).mean() < 0.01 / 30
    assert relative_error(depth, truth, mask).mean() < 0.06 / 30


def test_parts_on_both_sides_of_a_shadow_keep_one_scale():
    """A band without normals divides the mask: integrated apart, both sides would have the same mean depth."""
    n = np.array([0.5, -0.3, -0.8]) / np.linalg.norm([0.5, -0.3, -0.8])
    truth = (n[2] * 10.0) / (rays() @ n)
    mask = np.ones((HEIGHT, WIDTH), dtype=bool)
    normals = np.tile(n, (HEIGHT, WIDTH, 1))
    normals[:, 30:45] = 0
    assert relative_error(integrate_normals(normals, mask, K), truth, mask).max() < 2e-4
    assert np.isnan(integrate_normals(np.zeros_like(normals), mask, K)).all()


def test_depths_in_holes_are_unknown(tmp_path):
    """`pmni integrate` writes zero there, and depths of other programs are ignored there."""
    scene_with_holes(make_sphere()).write(tmp_path)
    scene = read_scene(tmp_path)
    assert scene.has_holes
    assert ((read_depths(scene) > 0) == scene.valid).all()
    main(["integrate", str(tmp_path), "--overwrite"])
    assert ((np.load(tmp_path / "integration/depth" / f"{scene.names[2]}.npy") > 0) == scene.valid[2]).all()
    assert ((read_depths(scene) > 0) == scene.valid).all()


@pytest.mark.parametrize("left", ["one view", "no view", "another size", "another view's"])
def test_overwrite_replaces_maps_that_the_reader_refuses(sphere_folder, left):
    """Depth maps as left by an interrupted run, another resolution or a removed view."""
    folder = sphere_folder / "integration" / "depth"
    files = sorted(folder.iterdir())
    if left == "another size":
        np.save(files[0], np.ones((3, 4), dtype=np.float32))
    elif left == "another view's":
        np.save(folder / "77.npy", np.load(files[0]))
    else:
        for file in files[left == "one view" :]:
            file.unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SceneError):
        read_scene(sphere_folder)
    main(["integrate", str(sphere_folder), "--overwrite"])
    scene = read_scene(sphere_folder)
    assert (read_depths(scene) > 0).any(axis=(1, 2)).all()
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["depth", "perspective"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_run_keeps_the_existing_files(sphere_folder, monkeypatch, capsys, failure):
    folder = sphere_folder / "integration"
    before = {path.name: path.read_bytes() for path in (folder / "depth").iterdir()}
    calls = []

    def fail_the_third(normals: np.ndarray, mask: np.ndarray, *args: object, **options: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise failure
        return mask.astype(float)

    monkeypatch.setattr(bilateral, "integrate_normals", fail_the_third)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(["integrate", str(sphere_folder), "--overwrite"])
    assert {path.name: path.read_bytes() for path in (folder / "depth").iterdir()} == before
    assert [path.name for path in folder.iterdir()] == ["depth"]
    if isinstance(failure, OSError):
        assert "No space left on device" in one_error_line(capsys)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--k", "-1"], "--k"),
        (["--k", "nan"], "--k"),
        (["--max-rounds", "0"], "--max-rounds"),
        (["--normals-folder", "normal_camera_space_none"], "normal_camera_space_none"),
    ],
)
def test_invalid_options_are_reported_in_one_line(sphere_folder, capsys, options, says):
    before = sorted(sphere_folder.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main(["integrate", str(sphere_folder), "--overwrite", *options])
    assert caught.value.code == 1
    assert says in one_error_line(capsys)
    assert sorted(sphere_folder.rglob("*")) == before


def test_a_missing_scene_is_reported_and_not_created(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["integrate", str(tmp_path / "none")])
    assert "none" in one_error_line(capsys)
    assert not (tmp_path / "none").exists()


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]
