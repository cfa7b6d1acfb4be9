# SPDX-License-Identifier: Apache-2.0
"""`pmni photometric` on files of each layout: the scene that it writes, and the errors that it names in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.photometric import CaptureFiles, angles_deg, make_capture, make_near_capture
from helpers.scenes import FILE_FROM_OPENCV

from pmni_nerfstudio import cli
from pmni_nerfstudio.data.images import read_photograph, write_exr, write_png
from pmni_nerfstudio.data.scene import Scene, read_scene

CAPTURE = make_capture()
LAYOUTS: dict[str, Callable[[CaptureFiles, Path], Path]] = {
    "folders": CaptureFiles.write_folders,
    "folders in natural order": lambda capture, root: capture.write_folders(root, has_filenames=False),
    "lp": CaptureFiles.write_lp,
    "common lp": lambda capture, root: capture.write_lp(root, is_shared=True),
    "json": CaptureFiles.write_json,
}


def solve(source: Path, out: Path, *options: str) -> Scene:
    cli.main(["photometric", str(source), str(out), *options])
    return read_scene(out)


def fails(source: Path, capsys: pytest.CaptureFixture, *options: str) -> str:
    """The error line of a command that ends with code 1 and writes nothing."""
    out = source.parent / "refused"
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["photometric", str(source), str(out), *options])
    assert end.value.code == 1 and not out.exists()
    assert not list(source.parent.glob(".refused*"))
    error = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(error) == 1 and error[0].startswith("error: "), error
    return error[0]


def mean_errors(scene: Scene, capture: CaptureFiles) -> list[float]:
    """Mean angle to the truth in each view; all pixels but a few have normals."""
    assert scene.valid.sum() > 0.98 * scene.masks.sum()
    views = zip(scene.normals, scene.valid, capture.truth.normals)
    return [float(angles_deg(found[valid], true[valid]).mean()) for found, valid, true in views]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_true_normals_and_cameras(layout: str, tmp_path: Path):
    source = tmp_path / "capture"
    source.mkdir()
    LAYOUTS[layout](CAPTURE, source)
    scene = solve(source, tmp_path / "scene")
    # Float16 in memory alone costs a hundredth of a degree.
    assert max(mean_errors(scene, CAPTURE)) < 0.05
    assert np.array_equal(scene.masks, CAPTURE.truth.masks) and scene.names == tuple(
        f"view_{i:02d}" for i in range(1, 5)
    )
    np.testing.assert_allclose(scene.K, CAPTURE.truth.K, rtol=1e-9, atol=1e-9)
    if "lp" in layout:
        assert scene.c2w is None
        return
    assert scene.c2w is not None
    centers = (scene.world_from_unit @ scene.c2w)[:, :3, 3]
    np.testing.assert_allclose(centers, CAPTURE.truth.data_c2w[:, :3, 3], rtol=1e-6, atol=1e-6)


def test_cameras_of_a_scene_are_used(tmp_path: Path):
    source = CAPTURE.write_lp(tmp_path / "capture")
    truth = CAPTURE.truth.write(tmp_path / "truth")
    shutil.copy(truth / "cameras_sphere.npz", source)
    scene = solve(source, tmp_path / "scene")
    assert scene.c2w is not None
    np.testing.assert_allclose(scene.c2w, CAPTURE.truth.c2w, atol=1e-6)


def test_albedo_confidence_and_pictures_are_written(tmp_path: Path):
    source = CAPTURE.write_folders(tmp_path / "capture")
    out = tmp_path / "scene"
    scene = solve(source, out)
    view = scene.names[1]
    albedo = read_photograph(out / "albedo" / f"{view}.png")[scene.valid[1]].astype(float)
    assert albedo.dtype == float and read_photograph(out / "albedo" / f"{view}.png").dtype == np.uint16
    ratios = np.median(albedo, axis=0) / np.median(albedo[:, 0])
    np.testing.assert_allclose(ratios, [1, 0.8, 0.6], rtol=2e-3)
    assert np.quantile(np.abs(albedo / np.median(albedo, axis=0) - 1), 0.95) < 0.02
    confidence = read_photograph(out / "confidence" / f"{view}.png")
    assert np.median(confidence[scene.valid[1]]) > 200 and not confidence[~scene.masks[1]].any()
    for folder, channels in (("albedo_gray", 0), ("residual", 3), ("normal_preview", 3), ("image", 3)):
        picture = read_photograph(out / folder / f"{view}.png")
        assert picture.shape == scene.masks.shape[1:] + ((channels,) if channels else ())
    assert scene.image_files is not None
    summary = json.loads((out / "photometric_result.json").read_text())
    assert [row["name"] for row in summary["views"]] == list(scene.names)
    assert all(row["valid_share"] > 0.98 and row["median_residual"] < 0.01 for row in summary["views"])


def rewrite(source: Path, change: Callable[[np.ndarray], np.ndarray], suffix: str = ".png") -> None:
    """Rewrite all images of a capture, under another suffix."""
    for path in source.glob("*/[0-9]*.png"):
        image = change(read_photograph(path))
        path.unlink()
        target = path.with_suffix(suffix)
        if suffix == ".png":
            write_png(target, image)
        elif suffix == ".exr":
            write_exr(target, image)
        else:
            cv2.imwrite(str(target), image[..., ::-1] if image.ndim == 3 else image)


@pytest.mark.parametrize(
    ("change", "suffix", "limit"),
    [
        (lambda image: (image // 257).astype(np.uint8), ".png", 1.0),
        (lambda image: image, ".tif", 0.05),
        (lambda image: image.astype(np.float32) / 1000, ".exr", 0.05),
        # The colors of the lights are lost.
        (lambda image: image.mean(axis=2).astype(np.uint16), ".png", 2.5),
        # A sensor of 12 bits: much is clipped, at 4095.
        (lambda image: np.minimum(image // 5, 4095).astype(np.uint16), ".png", 0.3),
    ],
    ids=["8 bits", "TIFF", "EXR", "gray", "12 bits, clipped"],
)
def test_kinds_of_images(change: Callable[[np.ndarray], np.ndarray], suffix: str, limit: float, tmp_path: Path):
    source = CAPTURE.write_folders(tmp_path / "capture", has_filenames=False)
    rewrite(source, change, suffix)
    assert max(mean_errors(solve(source, tmp_path / "scene"), CAPTURE)) < limit


def encoded(image: np.ndarray) -> np.ndarray:
    return np.round(255 * (image / 65535) ** (1 / 2.2)).astype(np.uint8)


def test_encoded_values_are_refused_until_gamma_is_given(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = CAPTURE.write_folders(tmp_path / "capture", has_filenames=False)
    rewrite(source, encoded)
    error = fails(source, capsys)
    assert "gamma-encoded" in error and "--gamma 2.2" in error and "view_01/001.png" in error
    assert max(mean_errors(solve(source, tmp_path / "scene", "--gamma", "2.2"), CAPTURE)) < 1
    assert max(mean_errors(solve(source, tmp_path / "wrong", "--gamma", "1"), CAPTURE)) > 3
    rewrite(source, lambda image: image, ".jpg")
    assert "is a JPEG file" in fails(source, capsys)


@pytest.mark.parametrize("is_one_sided", [False, True])
def test_near_lights_need_the_depth(is_one_sided: bool, tmp_path: Path):
    capture = make_near_capture(is_one_sided=is_one_sided)
    truth = capture.truth
    scale = np.cbrt(np.linalg.det(truth.world_from_unit[:3, :3]))
    distance = float(np.nanmean(truth.depths) * scale)
    source = capture.write_json(tmp_path / "capture", units="mm", distance=distance)
    flat, deep = (
        np.mean(mean_errors(solve(source, tmp_path / f"scene_{rounds}", "--depth-rounds", str(rounds)), capture))
        for rounds in (0, 2)
    )
    # The step of depth behind the bump remains unknown.
    assert deep < 1 and deep < 0.6 * flat, (flat, deep)


def test_the_distance_of_near_lights_follows_from_the_poses(tmp_path: Path):
    capture = make_near_capture()
    source = capture.write_json(tmp_path / "capture", units="mm")
    assert np.mean(mean_errors(solve(source, tmp_path / "scene"), capture)) < 1.5


def test_near_lights_of_luces(tmp_path: Path):
    capture = make_near_capture(is_one_sided=True)
    source = capture.write_luces(tmp_path / "capture")
    scene = solve(source, tmp_path / "scene")
    assert np.mean(mean_errors(scene, capture)) < 1.5 and scene.c2w is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("2.000000", "-2.000000", "an exponent is negative"),
        ("1.000000", "nan", "not finite"),
        (" 0.0000", "", "lines with"),
    ],
)
def test_damaged_files_of_luces_are_one_line(
    old: str, new: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    source = make_near_capture(is_one_sided=True).write_luces(tmp_path / "capture")
    path = source / "view_02" / "led_params.txt"
    head, size, first, *others = path.read_text().splitlines()
    path.write_text("\n".join([head, size, new.join(first.rsplit(old, 1)), *others]))
    assert words in fails(source, capsys)


def test_an_existing_scene_is_replaced_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture):
    source, out = CAPTURE.write_folders(tmp_path / "capture"), tmp_path / "scene"
    solve(source, out)
    (out / "mark").touch()
    with pytest.raises(SystemExit):
        cli.main(["photometric", str(source), str(out)])
    assert "exists already; add --overwrite" in capsys.readouterr().err and (out / "mark").exists()
    solve(source, out, "--overwrite")
    assert not (out / "mark").exists()


# ---- errors of the user's data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "words"),
    [("opencv", "point away from the viewer"), ("directx", "point inwards at the silhouette")],
)
def test_wrong_axes_of_the_lights_are_named(axes: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    source = CAPTURE.write_folders(tmp_path / "capture")
    error = fails(source, capsys, "--light-axes", axes)
    assert words in error and "give --light-axes camera" in error


def test_a_flipped_x_of_the_lights_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = CAPTURE.write_folders(tmp_path / "capture")
    for view in source.glob("view_*"):
        np.savetxt(view / "light_directions.txt", CAPTURE.lights[0].vectors * FILE_FROM_OPENCV * [-1, 1, 1])
    assert "flip x of the lights" in fails(source, capsys)


def test_a_view_without_lights_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = CAPTURE.write_folders(tmp_path / "capture")
    (source / "view_02" / "light_directions.txt").unlink()
    assert "view_02: has no light_directions.txt" in fails(source, capsys)


def test_another_order_of_the_images_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = CAPTURE.write_folders(tmp_path / "capture", has_filenames=False)
    order = np.random.default_rng(0).permutation(16)
    for view in source.glob("view_*"):
        np.savetxt(view / "light_directions.txt", (CAPTURE.lights[0].vectors * FILE_FROM_OPENCV)[order])
    assert "do not explain its images" in fails(source, capsys)


def text(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """A change of a text file in the second view."""

    def spoil(source: Path) -> None:
        path = source / "view_02" / name
        path.write_text(change(path.read_text()))

    return spoil


def spoil_image(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def spoil(source: Path) -> None:
        path = source / "view_02" / "003.png"
        write_png(path, change(read_photograph(path)))

    return spoil


def without_last_line(content: str) -> str:
    return "\n".join(content.splitlines()[:-1])


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "image of another size": (spoil_image(lambda image: image[:-2]), "view_02/003.png"),
    "image of another depth": (spoil_image(lambda image: (image // 257).astype(np.uint8)), "has uint8 pixels"),
    "gray image": (spoil_image(lambda image: image[..., 0]), "has 1 channels"),
    "broken image": (lambda source: (source / "view_02" / "003.png").write_bytes(b"no"), "view_02/003.png"),
    "missing image": (lambda source: (source / "view_02" / "003.png").unlink(), "names 003.png, which is not in"),
    "missing mask": (lambda source: (source / "view_02" / "mask.png").unlink(), "view_02/mask.png: is missing"),
    "too few directions": (text("light_directions.txt", without_last_line), "has 15 lights for 16 images"),
    "too few intensities": (text("light_intensities.txt", without_last_line), "has 15 lights for 16 images"),
    "no numbers": (text("light_directions.txt", lambda content: "a" + content[1:]), "can't be read as numbers"),
    "two columns": (text("light_directions.txt", lambda content: "1 2\n" * 16), "give 3 finite numbers"),
    "ragged lines": (
        text("light_directions.txt", lambda content: "1 2\n" + content),
        "lines with 2 and with 3 numbers",
    ),
    "zero direction": (text("light_directions.txt", lambda content: "0 0 0\n" * 16), "light 1 has no direction"),
    "negative intensity": (text("light_intensities.txt", lambda content: "-1\n" * 16), "light 1 is not positive"),
    "no calibration of a view": (lambda source: shutil.copytree(source / "view_02", source / "view_09"), "no Rc_9"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    source = CAPTURE.write_folders(tmp_path / "capture")
    spoil, words = FAULTS[fault]
    spoil(source)
    assert words in fails(source, capsys)


def test_a_capture_without_cameras_needs_a_focal_length(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = CAPTURE.write_lp(tmp_path / "capture")
    (source / "intrinsics.json").unlink()
    assert "give --focal" in fails(source, capsys)
    focal = CAPTURE.truth.K[0, 0, 0]
    scene = solve(source, tmp_path / "scene", "--focal", str(focal))
    np.testing.assert_allclose(scene.K, CAPTURE.truth.K)


def test_an_image_without_a_line_in_the_lp_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = CAPTURE.write_lp(tmp_path / "capture")
    path = source / "view_03" / "dome.lp"
    path.write_text(path.read_text().replace("007.PNG", "other.PNG"))
    assert "dome.lp: has no light for" in (error := fails(source, capsys)) and "view_03/007.png" in error


def test_other_folders_and_single_views_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no images with known lights" in fails(empty, capsys)
    assert "does not exist" in fails(tmp_path / "missing", capsys)
    source = CAPTURE.write_folders(tmp_path / "capture")
    for view in (2, 3, 4):
        shutil.rmtree(source / f"view_{view:02d}")
    assert "only one view" in fails(source, capsys)


JSON_FAULTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "axes": (lambda data: data.pop("light_axes"), "light_axes is None"),
    "unknown key": (lambda data: data.update(gamma=2), "unknown key gamma"),
    "views": (lambda data: data.update(views={}), "views is not a list"),
    "name": (lambda data: data["views"][0].update(name="a/b"), "can't be a file name"),
    "double name": (lambda data: data["views"][0].update(name="view_02"), "two views named view_02"),
    "image": (lambda data: data["views"][0]["images"].append("none.png"), "none.png: No such file"),
    "mask": (lambda data: data["views"][0].pop("mask"), "mask names no file"),
    "lights": (lambda data: data["views"][0]["lights"].pop(), "has 15 lights for 16 images"),
    "both kinds": (lambda data: data["views"][0]["lights"][0].update(position=[0, 0, 1]), "a direction, or each a"),
    "number": (lambda data: data["views"][0]["lights"][0].update(direction=[0, "x", 1]), "direction is not 3 finite"),
    "intensity": (lambda data: data["views"][0]["lights"][3].update(intensity=0), "light 4 is not positive"),
    "intrinsics": (lambda data: data["views"][0]["intrinsics"].pop("cx"), "lacks fl_x, fl_y, cx or cy"),
    "pose": (lambda data: data["views"][0].update(c2w=[[1, 2, 3, 4]] * 4), "c2w is not a rigid"),
    "one pose missing": (lambda data: data["views"][1].pop("c2w"), "view view_02 has no c2w"),
    "saturation": (lambda data: data.update(saturation=-1), "saturation is not a positive number"),
}


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_faults_of_the_description_are_one_line(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    source = CAPTURE.write_json(tmp_path / "capture")
    data = json.loads((source / "photometric.json").read_text())
    spoil, words = JSON_FAULTS[fault]
    spoil(data)
    (source / "photometric.json").write_text(json.dumps(data))
    assert words in fails(source, capsys)


def test_near_lights_need_units_and_a_distance(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = make_near_capture().write_json(tmp_path / "capture")
    assert "units is missing" in fails(source, capsys)
    data = json.loads((source / "photometric.json").read_text()) | {"units": "mm"}
    for view in data["views"]:
        del view["c2w"]
    (source / "photometric.json").write_text(json.dumps(data))
    assert "give the object's mean distance" in fails(source, capsys)


@pytest.mark.parametrize(
    "option", [("--gamma", "0"), ("--focal", "-1"), ("--drop-dark", "1"), ("--drop-dark", "0.8"), ("--min-lights", "2")]
)
def test_options_are_checked(option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture):
    assert fails(tmp_path, capsys, *option).startswith(f"error: {option[0]}")
