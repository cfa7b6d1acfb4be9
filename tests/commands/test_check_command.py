# SPDX-License-Identifier: Apache-2.0
"""`pmni check`: views that do not fit the others are named, the summary holds the scene's figures, nothing is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.importer_checks import prepare
from helpers.importer_files import NAMES, write_maps, write_transforms
from helpers.scenes import capture, make_tilted_ellipsoid, similarity
from PIL import Image
from scipy import ndimage

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.geometry.silhouette_consistency import inconsistent_views, measure_consistency

WORLD = similarity(55, (20, -35, 50), (210, -90, 640))


def write(folder: Path, c2w: np.ndarray | None = None, holes: bool = False, has_poses: bool = True) -> Path:
    """A capture of twelve views as a scene folder, by default with its true poses."""
    scene, views, _ = capture()
    normals = views.normals.copy()
    if holes:
        normals[3, :, :40] = 0
    write_scene(
        folder,
        names=[f"turn_{i}" for i in range(12)],
        K=views.K,
        c2w=(scene.c2w if c2w is None else c2w) if has_poses else None,
        world_from_unit=WORLD,
        masks=views.masks,
        normals=normals,
    )
    return folder


def swapped(c2w: np.ndarray, i: int, j: int) -> np.ndarray:
    order = np.arange(len(c2w))
    order[[i, j]] = order[[j, i]]
    return c2w[order]


def scores_of(masks: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    _, views, _ = capture()
    return np.array([view.score for view in measure_consistency(list(masks), views.K, c2w)])


# ---- consistency ----------------------------------------------------------------------------------------------------


def test_exact_views_are_consistent():
    scene, views, _ = capture()
    scores = scores_of(views.masks, scene.c2w)
    assert scores.min() > 0.97 and inconsistent_views(scores) == []


@pytest.mark.parametrize("fault", ["poses exchanged", "camera turned", "mask grown", "mask cut"])
def test_wrong_views_are_found_and_no_others(fault: str):
    scene, views, _ = capture()
    masks, c2w, wrong = views.masks.copy(), scene.c2w.copy(), {4}
    if fault == "poses exchanged":
        c2w, wrong = swapped(c2w, 2, 5), {2, 5}
    elif fault == "camera turned":
        c2w[4, :3, :3] = c2w[4, :3, :3] @ similarity(1, (0, 0, 30), (0, 0, 0))[:3, :3]
    elif fault == "mask grown":
        masks[4] = ndimage.binary_dilation(masks[4], iterations=5)
    else:
        rows = np.flatnonzero(masks[4].any(axis=1))
        masks[4, rows[-1] - len(rows) // 3 :] = False
    scores = scores_of(masks, c2w)
    assert set(inconsistent_views(scores)) == wrong
    assert np.delete(scores, list(wrong)).min() > 0.95  # the others are not blamed


def test_rays_and_cut_off_rays_tell_large_masks_from_small_ones():
    scene, views, _ = capture()
    masks = views.masks.copy()
    masks[4] = ndimage.binary_dilation(masks[4], iterations=5)
    masks[9] = ndimage.binary_erosion(masks[9], iterations=4)
    found = measure_consistency(list(masks), views.K, scene.c2w)
    assert found[4].own_rays < 0.9 < found[4].other_rays and found[9].other_rays < 0.95 < found[9].own_rays
    x, y = found[4].pixels[~found[4].is_consistent].T
    assert not views.masks[4][y, x].any()  # the rays that miss are those of the pixels added


def test_many_views_are_compared_in_groups():
    scene, views, _ = capture(views=34, width=40, height=34)
    found = measure_consistency(list(views.masks), views.K, swapped(scene.c2w, 3, 11))
    assert set(inconsistent_views(np.array([view.score for view in found]))) == {3, 11}


# ---- command --------------------------------------------------------------------------------------------------------


def test_the_summary_has_the_figures_of_the_scene(tmp_path: Path, capsys):
    folder = write(tmp_path / "blob", holes=True)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    main(["check", str(folder), "--output", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr()
    assert f"{folder}: 12 views of 80x68\n" in printed.out
    _, views, _ = capture()
    hole = views.masks[3, :, :40].sum() / views.masks[3].sum()
    for text in (
        f"focal length {views.K[0, 0, 0]:.1f} px",
        "radius 55 and center (210, -90, 640)",
        f"at most {hole:.1%} (turn_3), by mask_valid/",
        "normal_camera_space_GT (EXR)",
        "100.0% face the camera",
    ):
        assert text in printed.out, printed.out
    assert "do not fit" not in printed.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    magenta = (np.abs(sheet - (255, 0, 200)).max(axis=-1) < 8).sum()
    assert magenta == pytest.approx(views.masks[3, :, :40].sum(), rel=0.05)


def test_views_at_fault_are_named_and_red(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["check", str(write(tmp_path / "blob", swapped(capture()[0].c2w, 2, 5)))])
    err = " ".join(capsys.readouterr().err.split())
    assert "silhouettes of 2 of 12 views do not fit the others: turn_" in err
    assert "turn_2 (" in err and "turn_5 (" in err and "turn_4 (" not in err
    sheet = np.asarray(Image.open(tmp_path / "blob_check.png")).astype(int)
    assert ((sheet == (198, 40, 40)).all(axis=-1)).sum() > 2 * 2 * 2 * (80 + 68)  # two frames, two pixels wide


def test_poses_in_random_order_are_reported(tmp_path: Path, capsys):
    order = np.random.default_rng(5).permutation(12)
    folder = write(tmp_path / "blob", capture()[0].c2w[order])
    main(["check", str(folder), "--output", str(tmp_path / "sheet.png")])
    assert "the cameras hardly fit these maps" in " ".join(capsys.readouterr().err.split())


def test_a_scene_without_poses(tmp_path: Path, capsys):
    main(["check", str(write(tmp_path / "blob", has_poses=False)), "--output", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr()
    assert "poses       none (intrinsics.json)" in printed.out and "silhouettes" not in printed.out
    assert Image.open(tmp_path / "sheet.png").size[0] > 3 * 80


def test_what_training_would_refuse_is_one_line(tmp_path: Path, capsys):
    def error(*args: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["check", *args])
        assert end.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    write_transforms(tmp_path / "src", make_tilted_ellipsoid())
    assert "is not a scene folder, but one can be made" in error(str(tmp_path / "src"))
    folder = write(tmp_path / "blob")
    (folder / "mask" / "turn_7.png").write_bytes(b"broken")
    assert "turn_7.png" in error(str(folder), "--output", str(tmp_path / "sheet.png"))
    assert "does not exist" in error(str(tmp_path / "nothing"))
    assert "--output" in error(str(folder), "--output", str(tmp_path / "sheet.jpg"))
    assert "its folder does not exist" in error(str(folder), "--output", str(tmp_path / "no" / "sheet.png"))
    assert not (tmp_path / "sheet.png").exists()


def test_prepare_prints_the_summary_and_names_views_at_fault(tmp_path: Path, capsys):
    truth = make_tilted_ellipsoid()
    write_maps(tmp_path / "plain", truth, NAMES, "opencv")
    prepare(tmp_path / "plain", tmp_path / "out", focal=300.0)
    out = capsys.readouterr().out
    assert "axes: opencv (decided by the maps)" in out and "  poses       none" in out
    masks = truth.masks.copy()
    masks[6] = ndimage.binary_dilation(masks[6], iterations=6)
    from dataclasses import replace

    write_transforms(
        tmp_path / "posed", replace(truth, masks=masks, normals=np.where(masks[..., None], truth.normals, 0))
    )
    prepare(tmp_path / "posed", tmp_path / "made")
    printed = capsys.readouterr()
    assert "  silhouettes consistent by" in printed.out
    assert "silhouettes of 1 of 8 views do not fit the others: frame_00007" in " ".join(printed.err.split())
