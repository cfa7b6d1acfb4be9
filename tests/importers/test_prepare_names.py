# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare`: which map belongs to which camera, and what is said about files that belong to nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.importer_checks import assert_is, prepare
from helpers.importer_files import NAMES, world_mats, write_maps, write_model, write_transforms
from helpers.scenes import AnalyticScene, Ellipsoid, analytic_scene, make_tilted_ellipsoid

from pmni_nerfstudio.data.images import write_exr, write_png
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.file_matching import match_files, plain_path, view_names
from pmni_nerfstudio.importers.map_folders import find_normals
from pmni_nerfstudio.importers.registry import FORMATS
from pmni_nerfstudio.importers.source import Frame, ImportOptions
from pmni_nerfstudio.importers.view_maps import inferred_mask, load


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    return make_tilted_ellipsoid()


def matched(views: Sequence[str], files: Sequence[str]) -> list[str | None]:
    found = match_files([plain_path(view) for view in views], {file: Path(file) for file in files})
    return [None if file is None else str(file) for file in found]


@pytest.mark.parametrize(
    ("views", "files", "expected"),
    [
        (["a.jpg", "b.jpg"], ["b", "a"], ["a", "b"]),
        (["cam1/0.png", "cam2/0.png"], ["cam1/0", "cam2/0"], ["cam1/0", "cam2/0"]),
        (["cam1/0.png", "cam2/0.png"], ["0"], [None, None]),
        (["cam1/0.png", "cam2/0.png"], ["cam2/0"], [None, "cam2/0"]),
        (["images/cam1/0.png", "images/cam2/0.png"], ["cam2_0", "cam1_0"], ["cam1_0", "cam2_0"]),
        (["ring1/IMG_1", "ring1/IMG_2"], ["IMG_0001", "IMG_0002"], ["IMG_0001", "IMG_0002"]),
        (["C:\\scan\\images\\a b (1).JPG"], ["a b (1)"], ["a b (1)"]),
        (["scan.0001", "scan.0002"], ["scan.0002"], [None, "scan.0002"]),
        (["IMG_1.JPG"], ["img_1"], ["img_1"]),
        (["IMG_1.JPG", "img_1.jpg"], ["IMG_1"], ["IMG_1", None]),
        (["7.png", "12.png"], ["0007_normal", "0012_normal"], ["0007_normal", "0012_normal"]),
        (["7.png"], ["07", "007"], [None]),
        (["x/7.png", "y/7.png"], ["7", "y/7"], ["7", "y/7"]),
        (["a.png"], ["a.png"], ["a.png"]),
    ],
)
def test_matching(views: list[str], files: list[str], expected: list[str | None]):
    assert matched(views, files) == expected


def test_no_file_is_given_twice():
    rng = np.random.default_rng(0)
    parts = ["1", "01", "a", "A", "a_normal", "x/1", "y/1", "x/a", "a.1", "x_1"]
    for _ in range(300):
        views, files = rng.choice(parts, 5), rng.choice(parts, 5, replace=False)
        found = [
            file for file in match_files(list(views), {str(file): Path(file) for file in files}) if file is not None
        ]
        assert len(set(found)) == len(found)


def test_view_names_are_no_paths():
    assert view_names(["a/1", "a/2"]) == ["1", "2"]
    assert view_names(["a/1", "b/1"]) == ["a_1", "b_1"]
    assert view_names(["a/1", "a_1"]) == ["1", "a_1"] and view_names(["a", "a"]) == ["0000", "0001"]


def test_a_rig_with_maps_in_subfolders(truth: AnalyticScene, tmp_path: Path):
    places = [f"cam{1 + i // 4}/{i % 4}" for i in range(8)]
    for i, place in enumerate(places):
        for kind in ("normals", "masks"):
            (tmp_path / "src" / kind / place).parent.mkdir(parents=True, exist_ok=True)
        write_exr(tmp_path / "src" / "normals" / f"{place}.exr", truth.stored_normals(i, "camera"))
        write_png(tmp_path / "src" / "masks" / f"{place}.png", truth.masks[i])
    write_model(tmp_path / "src" / "sparse" / "0", truth, ".bin", [f"{place}.png" for place in places])
    scene = prepare(tmp_path / "src", tmp_path / "out")
    assert_is(scene, truth, has_sphere=False)
    assert scene.names == tuple(place.replace("/", "_") for place in places)
    for path in sorted((tmp_path / "src" / "normals" / "cam1").iterdir()):
        path.rename(tmp_path / "src" / "normals" / path.name)
    # Now the subfolder cam2 lies beside maps whose names fit two cameras each.
    with pytest.raises(PmniError, match="no normal map"):
        prepare(tmp_path / "src", tmp_path / "none")


def test_maps_without_a_camera_and_cameras_without_a_map_are_named(truth: AnalyticScene, tmp_path: Path):
    write_transforms(tmp_path, truth)
    meta = json.loads((tmp_path / "transforms.json").read_text())
    meta["frames"] = [{**frame, "file_path": f"images/frame_{i:05d}.png"} for i, frame in enumerate(meta["frames"])]
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    source = FORMATS["nerfstudio"].read(tmp_path, ImportOptions())
    text = " ".join(source.warnings)
    assert "1 images (first frame_00000) have no normal map" in text
    assert "frame_00008.png: is one of 1 normal maps, of 8, that have no camera" in text
    write_maps(tmp_path / "idr", truth, NAMES[:6])
    np.savez(tmp_path / "idr" / "cameras.npz", **world_mats(truth))
    (line,) = FORMATS["neus"].read(tmp_path / "idr", ImportOptions()).warnings
    assert "2 of 8 cameras (first world_mat_6) have no normal map" in line


def split_transforms(folder: Path, places: Sequence[str]) -> None:
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").unlink()
    parts: dict[str, list] = {}
    for frame, place in zip(sorted(meta["frames"], key=lambda frame: frame["file_path"]), places):
        parts.setdefault(place.split("/")[0], []).append({**frame, "file_path": f"./{place}"})
    for part, frames in parts.items():
        (folder / f"transforms_{part}.json").write_text(json.dumps({**meta, "frames": frames}))


def test_files_of_training_and_test_views_are_read_together(truth: AnalyticScene, tmp_path: Path):
    names = [f"{('train', 'val', 'test')[min(i // 4, 2)]}/frame_{i + 1:05d}" for i in range(8)]
    write_transforms(tmp_path / "src", truth)
    split_transforms(tmp_path / "src", names)
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, has_sphere=False)


def test_test_views_named_like_training_views(truth: AnalyticScene, tmp_path: Path):
    write_transforms(tmp_path, truth)
    split_transforms(
        tmp_path, [f"train/frame_{i + 1:05d}" for i in range(6)] + [f"test/frame_{i + 1:05d}" for i in (0, 1)]
    )
    source = FORMATS["nerfstudio"].read(tmp_path, ImportOptions())
    assert len(source.frames) == 6
    assert "transforms_train.json: was read, and not transforms_test.json" in source.warnings[0]


def test_the_colmap_model_with_most_normal_maps(truth: AnalyticScene, tmp_path: Path):
    names = [f"view{i}" for i in range(8)]
    write_maps(tmp_path / "src", truth, names)
    files = [f"{name}.jpg" for name in names]
    write_model(tmp_path / "src" / "sparse" / "0", truth.subset([0, 1]), ".bin", files[:2])
    write_model(tmp_path / "src" / "sparse" / "1", truth, ".txt", files)
    write_model(tmp_path / "src" / "sparse" / "10", truth, ".bin", [f"x{file}" for file in files])
    (tmp_path / "src" / "sparse" / "2").mkdir()
    for name in ("cameras", "images"):
        (tmp_path / "src" / "sparse" / "2" / f"{name}.bin").write_bytes(b"")
    source = FORMATS["colmap"].read(tmp_path / "src", ImportOptions())
    assert len(source.frames) == 8 and source.description == "COLMAP model in sparse/1 (txt)"
    assert "sparse/0 (2 of 2 images), sparse/2 (can't be read), sparse/10 (0 of 8 images)" in source.warnings[0]


def test_folders_of_normals_side_by_side(truth: AnalyticScene, tmp_path: Path):
    def chosen(*names: str) -> tuple[str, str]:
        root = tmp_path / "-".join(names)
        for name in names:
            write_maps(root, truth, NAMES, normals=name, masks=None)
        found = find_normals(root)
        return next(iter(found.files.values())).parent.name, " ".join(found.warnings)

    folder, text = chosen("normal_world_space_GT", "normal_world_space_sdps")
    assert folder == "normal_world_space_sdps" and "not from normal_world_space_GT" in text
    folder, text = chosen("normal_camera_space_x", "normal_world_space_x", "normal_camera_space_GT")
    assert folder == "normal_camera_space_x" and "normal_world_space_x" in text
    assert chosen("normal_world_space_GT") == ("normal_world_space_GT", "")
    with pytest.raises(PmniError, match="several folders of normals .*normal_world_space_a.*--normals"):
        chosen("normal_world_space_GT", "normal_world_space_a", "normal_world_space_b")


def test_maps_in_formats_that_are_not_read_are_named(tmp_path: Path):
    (tmp_path / "normals").mkdir()
    (tmp_path / "normals" / "0.psd").write_text("")
    with pytest.raises(PmniError, match="only .psd; save them as one of .exr"):
        FORMATS["nerfstudio"].read(write_cameras_only(tmp_path), ImportOptions())


def write_cameras_only(folder: Path) -> Path:
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
    meta = {"w": 64, "h": 64, "fl_x": 100.0, "frames": [frame, {**frame, "file_path": "b.png"}]}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def test_masks_from_normals_that_are_weighted_by_coverage(tmp_path: Path):
    """Four samples a side and pixel: the mask is that of the pixels covered by half, not of all that are touched."""
    surface, fine, coarse = Ellipsoid((0, 0, 0), (0.8, 0.5, 0.6)), 4 * 64, 64
    c2w = np.eye(4)
    c2w[2, 3] = -10
    K = np.array([[4 * 380.0, 0, (fine - 1) / 2], [0, 4 * 380.0, (fine - 1) / 2], [0, 0, 1]])
    view = analytic_scene(surface.intersect, K, c2w[None], (fine, fine))
    shape = (coarse, 4, coarse, 4)
    averaged = view.normals[0].reshape(*shape, 3).mean(axis=(1, 3))
    covered = view.masks[0].reshape(shape).mean(axis=(1, 3))
    mask = inferred_mask(averaged.astype(np.float32))
    clear = np.abs(covered - 0.5) > 0.1
    assert ((covered > 0.1) & (covered < 0.4)).sum() > 20
    np.testing.assert_array_equal(mask[clear], covered[clear] >= 0.5)
    write_exr(tmp_path / "n.exr", averaged)
    normals, read, warnings = load(Frame("n", tmp_path / "n.exr", K))
    np.testing.assert_array_equal(read, mask)
    np.testing.assert_allclose(np.linalg.norm(normals[mask], axis=1), 1, atol=1e-6)
    assert warnings == []  # these lengths are no fault of the file, but those inside would be
    half = averaged.copy()
    half[20:30, 28:36] *= 0.7
    write_exr(tmp_path / "n.exr", half)
    assert "have a length that differs from 1" in load(Frame("n", tmp_path / "n.exr", K))[2][0]


@pytest.mark.parametrize("of_height", [True, False])
def test_blender_angle_of_pictures_in_portrait_format(of_height: bool, tmp_path: Path):
    size = (60, 90)
    rng = np.random.default_rng(4)
    from helpers.scenes import irregular_ring

    K = np.array([[130.0, 0, 29.5], [0, 130, 44.5], [0, 0, 1]])
    surface = Ellipsoid((0.1, -0.1, 0.1), (0.5, 0.3, 0.7))
    truth = analytic_scene(surface.intersect, K, irregular_ring(8, 3.2, rng), size, names=tuple(NAMES))
    write_transforms(tmp_path, truth, "camera")
    meta = json.loads((tmp_path / "transforms.json").read_text())
    for key in ("fl_x", "fl_y", "cx", "cy"):
        del meta[key]
    meta["camera_angle_x"] = 2 * np.arctan(size[of_height] / 2 / 130)
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    source = FORMATS["nerfstudio"].read(tmp_path, ImportOptions())
    for frame in source.frames:
        np.testing.assert_allclose(frame.K, K, atol=1e-9)
    assert f"belongs to the {'height' if of_height else 'width'}" in source.warnings[-1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_text_in_encodings_of_windows(encoding: str, truth: AnalyticScene, tmp_path: Path):
    write_transforms(tmp_path / "json", truth)
    file = tmp_path / "json" / "transforms.json"
    file.write_text(file.read_text().replace("images/", "D:\\\\images\\\\"), encoding=encoding)
    assert len(FORMATS["nerfstudio"].read(tmp_path / "json", ImportOptions()).frames) == 8
    write_maps(tmp_path / "colmap", truth, NAMES)
    write_model(tmp_path / "colmap", truth, ".txt", [f"{name}.png" for name in NAMES])
    for name in ("cameras.txt", "images.txt"):
        (tmp_path / "colmap" / name).write_text((tmp_path / "colmap" / name).read_text(), encoding=encoding)
    assert len(FORMATS["colmap"].read(tmp_path / "colmap", ImportOptions()).frames) == 8
    write_maps(tmp_path / "plain", truth, NAMES)
    (tmp_path / "plain" / "K.txt").write_text("300 0 36\n0 300 30\n0 0 1\n", encoding=encoding)
    assert FORMATS["plain"].read(tmp_path / "plain", ImportOptions()).frames[0].K[0, 0] == 300


def test_neus2(truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES)
    frames = []
    for name, K, pose in zip(NAMES, truth.K, truth.data_c2w):
        matrix = np.eye(4)
        matrix[:3, :3] = K
        matrix[:2, 2] += 0.5
        frames.append(
            {"file_path": f"images/{name}.png", "transform_matrix": pose.tolist(), "intrinsic_matrix": matrix.tolist()}
        )
    meta = {"from_na": False, "w": truth.size[0], "h": truth.size[1], "scale": 0.5, "offset": [0.5] * 3}
    (tmp_path / "src" / "transform.json").write_text(json.dumps({**meta, "frames": frames}))
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, has_sphere=False)


def test_cameras_that_do_not_belong_to_the_maps_cause_a_warning(truth: AnalyticScene, tmp_path: Path, capsys):
    write_transforms(tmp_path / "src", truth)
    file = tmp_path / "src" / "transforms.json"
    meta = json.loads(file.read_text())
    paths = [frame["file_path"] for frame in meta["frames"]]
    for frame, i in zip(meta["frames"], (3, 0, 6, 1, 7, 4, 2, 5)):
        frame["file_path"] = paths[i]
    file.write_text(json.dumps(meta))
    prepare(tmp_path / "src", tmp_path / "out")
    assert "the cameras hardly fit these maps" in " ".join(capsys.readouterr().err.split())
