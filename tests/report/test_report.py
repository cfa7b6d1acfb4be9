# SPDX-License-Identifier: Apache-2.0
"""`pmni report`: contents of the page, its independence of a network, and its figures in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
import yaml
from helpers.browser import Opened, opened  # noqa: F401
from helpers.training import METHODS, make_config
from PIL import Image
from torch.utils.tensorboard.writer import SummaryWriter

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.images import read_normals, write_exr
from pmni_nerfstudio.evaluation.ground_truth import read_ground_truth
from pmni_nerfstudio.evaluation.stored_result import StoredResult, read_evaluated_result
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.report.curves import metric_name, read_curves
from pmni_nerfstudio.report.frames import display_frame
from pmni_nerfstudio.report.settings import MAIN_SETTINGS
from pmni_nerfstudio.report.strips import errors_deg, scale_end_deg, view_strips
from pmni_nerfstudio.studies.comparison import write_comparison
from pmni_nerfstudio.studies.job import JobResult

VIEWS = 5
ERROR_DEG = 3.0
"""Rotation of the rendered normals of view 1 about the camera's x axis, in degrees."""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of `pmni eval` for a perfect result, except for one view's normals, with a training run."""
    place = tmp_path_factory.mktemp("report")
    scene, out, run = place / "scene <b>&", place / "out", place / "run"
    SynthCommand(out=scene, views=VIEWS, width=48, height=40, mesh_resolution=48, rotation_noise_deg=5).main()
    truth = read_ground_truth(scene / "truth")
    out.mkdir()
    shutil.copy(scene / "mesh_Gt.ply", out / "mesh.ply")
    np.save(out / "poses.npy", transform_poses(truth.world_from_unit, truth.c2w))
    (out / "normal_camera_space").mkdir()
    names = [f"{i:02d}" for i in range(VIEWS)]
    for name in names:
        normals = read_normals(scene / "normal_camera_space_GT" / f"{name}.exr")
        if name == "01":
            sine, cosine = np.sin(np.deg2rad(ERROR_DEG)), np.cos(np.deg2rad(ERROR_DEG))
            normals = normals @ np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]], dtype=np.float32)
        write_exr(out / "normal_camera_space" / f"{name}.exr", normals)
    _write_run(run, scene)
    _write_metrics(out, scene, run / "config.yml", names)
    return out


def _write_run(run: Path, scene: Path) -> None:
    config = make_config("pmni", scene, run, 77)
    run.mkdir()
    (run / "config.yml").write_text(yaml.dump(config))
    with SummaryWriter(str(run)) as writer:
        for step in range(0, 100, 10):
            writer.add_scalar("Train Loss Dict/normal_loss", 0.1 / (step + 1), step)
            writer.add_scalar("Train Loss Dict/mask_loss", 0.01 / (step + 1), step)
            writer.add_scalar("Eval Images Metrics/rot_deg", 5.0 / (step + 1), step)
            writer.add_scalar("Train Metrics Dict/idle", 0.0, step)


def _write_metrics(out: Path, scene: Path, config: Path, names: list[str]) -> None:
    views = [
        {"name": name, "held_out": name == "03", "mae_deg": 0.125, "median_deg": 0.1, "mask_iou": 0.99}
        | {"rot_deg": 0.0625 if name == "02" else 0.0, "position": None if name == "03" else 1.5}
        for name in names
    ]
    poses = {"rot_deg": 0.0123, "rot_deg_max": 0.0625, "views_under_1deg": 1.0, "position": 1.5, "position_pct": 0.2}
    record = {
        "scene": str(scene),
        "config": str(config),
        "method": "pmni",
        "units": "mm",
        "aligned": True,
        "similarity": (1.25 * np.eye(4)).tolist(),
        "surface": {"chamfer": 0.0456, "chamfer_pct": 0.0789, "accuracy": 0.04, "completeness": 0.05}
        | {"threshold": 0.5, "fscore": 0.9876, "fscore_1pct": 1.0},
        "poses": poses | {"ate": 1.6, "rpe_rot_deg": 0.02, "rpe_position": 0.3},
        "normals": {"against": "inputs", "mae_deg": 0.6543, "median_deg": 0.5, "held_out_mae_deg": 0.7}
        | {"mask_iou": 0.99},
        "mesh": {"vertices": 100, "faces": 196, "components": 1, "watertight": True, "self_intersections": 0}
        | {"area": 3210.0, "volume": 4321.0, "mean_curvature": 0.1},
        "views": views,
    }
    (out / "metrics.json").write_text(json.dumps(record))
    (out / "views.csv").write_text("name,mae_deg\n00,0.125\n")


def report(out: Path) -> str:
    main(["report", str(out)])
    return (out / "report.html").read_text(encoding="utf-8")


class Addresses(HTMLParser):
    """Parses a page: addresses that it loads or links to, its text, and its downloads by name."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[str] = []
        self.downloads: dict[str, str] = {}
        self.text = ""
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.found += [values[name] for name in ("src", "href", "srcset", "data", "poster", "action") if name in values]
        if "download" in values:
            self.downloads[values["download"]] = values["href"]
        self._in_script = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        self.text += "" if self._in_script else data


def contents(page: str, kind: str) -> list[dict[str, Any]]:
    """Contents of the page's figures of a kind."""
    pattern = rf'<div class="{kind}"[^>]*></div><script type="application/json">(.*?)</script>'
    return [json.loads(text) for text in re.findall(pattern, page)]


def decoded(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


@pytest.fixture(scope="module")
def page(evaluated: Path) -> str:
    return report(evaluated)


def test_the_path_and_size_of_the_page_are_printed(evaluated: Path, page: str, capsys: pytest.CaptureFixture[str]):
    report(evaluated)
    printed = capsys.readouterr().out
    size = (evaluated / "report.html").stat().st_size
    assert str(evaluated / "report.html") in printed and f"{size / 1e6:.1f} MB" in printed
    assert size < 2e6
    assert not [path for path in evaluated.iterdir() if path.name.startswith(".")]


def test_the_page_loads_nothing_from_a_network(page: str):
    addresses = Addresses(page).found
    assert len(addresses) > 3 * VIEWS
    assert not [address[:80] for address in addresses if not address.startswith(("data:", "#"))]
    styles = "".join(re.findall(r"<style>.*?</style>", page, flags=re.S))
    assert styles and "url(" not in styles and "@import" not in styles
    assert page.count("three.js 0.") == 1 and "MIT license" in page


def test_metrics_are_shown(evaluated: Path, page: str):
    text = Addresses(page).text
    for number in (
        "0.0456",
        "0.0789",
        "0.0123",
        "0.654",
        "0.9876",
        "3210",
        "scale 1.25000",
        "100%",
        "rotation error 0.062°",
    ):
        assert number in text, number
    assert text.count("normal error 0.12° mean, 0.10° median") == VIEWS
    assert "held out" in text and "held-out views" in text and "normals, median" in text
    assert text.count("position error 1.5 mm") == VIEWS - 1
    # names are escaped
    assert "scene <b>&" in text and "<b>&" not in page
    # settings of the run
    assert re.search(r"Maximum steps\s*77\b", text) and "max_num_iterations: 77" in text


def test_files_are_embedded(evaluated: Path, page: str):
    downloads = Addresses(page).downloads
    assert set(downloads) == {"mesh.ply", "poses.npy", "metrics.json", "views.csv"}
    for name, uri in downloads.items():
        assert decoded(uri) == (evaluated / name).read_bytes(), name


def test_errors_in_holes_are_unknown(evaluated: Path, monkeypatch: pytest.MonkeyPatch):
    scene = read_evaluated_result(evaluated).scene
    assert scene is not None
    hole = scene.masks[0] & (np.arange(scene.width) < np.nonzero(scene.masks[0])[1].mean())
    normals = scene.normals.copy()
    normals[0][hole] = 0
    monkeypatch.setattr(StoredResult, "scene", property(lambda _: replace(scene, normals=normals)))
    errors = errors_deg(read_evaluated_result(evaluated))
    assert np.isfinite(errors[0]).sum() == (scene.masks[0] & ~hole).sum()
    assert np.nanmax(errors[0]) < 0.2
    assert np.isfinite(errors[1]).sum() == scene.masks[1].sum()


def test_pictures_of_views_show_the_errors(evaluated: Path):
    result = read_evaluated_result(evaluated)
    errors = errors_deg(result)
    assert result.scene is not None
    for view, error in enumerate(errors):
        assert np.isfinite(error).sum() == result.scene.masks[view].sum()
        expected = 0.5 * ERROR_DEG if view == 1 else 0.0
        assert np.nanmean(error) == pytest.approx(expected, rel=1.0, abs=0.05)
        assert np.nanmax(error) < ERROR_DEG + 0.1
    end = scale_end_deg(errors)
    assert end in (1.0, 2.0, 5.0)
    strips = view_strips(result, errors, end)
    reference, large, zero = (
        np.asarray(Image.open(io.BytesIO(decoded(uri))).convert("RGB"), dtype=float)
        for uri in (strips[1].reference, strips[1].error, strips[0].error)
    )
    # pictures are cropped to the object; large errors are dark, small ones pale
    assert reference.shape == large.shape == (*strips[1].size[::-1], 3)
    assert reference.shape[0] <= 40 and reference.shape[1] <= 48
    assert large.min() < 120 and zero.min() > 150
    center = errors[0].shape[0] // 2, errors[0].shape[1] // 2
    assert reference[center][2] > 180  # blue: the normal points towards the viewer


def test_training_curves_are_read_and_plotted(evaluated: Path, page: str):
    curves = read_curves(evaluated.parent / "run")
    np.testing.assert_allclose(
        curves["Train Loss Dict/normal_loss"].values, 0.1 / (np.arange(0, 100, 10) + 1), rtol=1e-6
    )
    assert curves["Eval Images Metrics/rot_deg"].steps.tolist() == list(range(0, 100, 10))
    charts = {tuple(line["name"] for line in chart["lines"]): chart for chart in contents(page, "chart")}
    assert {("normal", "mask"), ("rot (deg)",)} == charts.keys()
    losses = charts["normal", "mask"]
    assert losses["logarithmic"] and losses["alt"].endswith("normal, mask")
    np.testing.assert_allclose(losses["lines"][0]["y"], 0.1 / (np.arange(0, 100, 10) + 1), rtol=1e-5)
    assert read_curves(evaluated) == {}
    assert metric_name("Eval Images Metrics/chamfer", "cm") == "chamfer (cm)"
    assert metric_name("Eval Images Metrics/chamfer_pct", "cm") == "chamfer (%)"
    assert metric_name("Train Metrics Dict/pose_rotation_max_deg", "cm") == "pose rotation max (deg), training"


def test_main_settings_exist_in_the_configuration():
    """Renaming an option of the method must not silently drop it from the report."""
    config = METHODS["pmni"].config
    for _, path in MAIN_SETTINGS:
        attrgetter(path)(config)


def test_figures_are_upright_and_face_the_first_camera():
    """Cameras look down on an object from a ring about an axis that is not aligned with the world's axes."""
    rotation = trimesh.transformations.random_rotation_matrix(np.array([0.1, 0.5, 0.9]))
    ball = trimesh.creation.icosphere(radius=4.0).apply_translation([10.0, 20.0, 30.0])
    ball.apply_transform(rotation)
    poses = np.tile(np.eye(4), (4, 1, 1))
    for pose, azimuth in zip(poses, np.deg2rad([20, 110, 200, 290])):
        away = np.array([np.cos(azimuth), np.sin(azimuth), 0.7]) / np.sqrt(1.49)
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        pose[:3, :3] = np.stack([right, np.cross(-away, right), -away], axis=1)
        pose[:3, 3] = np.array([10.0, 20.0, 30.0]) + 40.0 * away
    frame = display_frame(ball, rotation @ poses)
    assert frame.radius == pytest.approx(4.0, rel=0.01)
    assert np.linalg.det(frame.rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(frame.rotation @ rotation[:3, :3] @ [0, 0, 1], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(frame.eye, np.array([0, -1, 0.7]) / np.sqrt(1.49), atol=1e-3)
    np.testing.assert_allclose(frame.points(np.asarray(ball.vertices)).mean(0), 0, atol=1e-3)


def test_missing_data_are_reported_on_the_page(evaluated: Path, tmp_path: Path):
    record = json.loads((evaluated / "metrics.json").read_text())
    record |= {"surface": None, "poses": None, "similarity": None, "aligned": False, "method": None}
    record |= {"scene": str(tmp_path / "gone"), "config": None}
    (tmp_path / "metrics.json").write_text(json.dumps(record))
    text = Addresses(html := report(tmp_path)).text
    for line in ("No mesh", "No pictures of the views", "No cameras", "No curves", "No settings"):
        assert line in text
    assert "0.654" in text and "Chamfer" not in text
    assert len(html) < 1e5  # without figures the libraries are omitted


def test_a_large_mesh_is_simplified(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pmni_nerfstudio.report import sections

    monkeypatch.setattr(sections, "FACES", 1000)
    monkeypatch.setattr(sections, "LARGEST_MESH", 10_000)
    shutil.copy(evaluated / "metrics.json", tmp_path)
    shutil.copy(evaluated / "mesh.ply", tmp_path)
    page = Addresses(report(tmp_path))
    full = trimesh.load_mesh(tmp_path / "mesh.ply", process=False)
    assert page.downloads["mesh.ply"] == "mesh.ply"  # the whole mesh, beside the page
    small = trimesh.load_mesh(io.BytesIO(decoded(page.downloads["mesh_light.ply"])), file_type="ply", process=False)
    assert 900 <= len(small.faces) <= 1000 < len(full.faces)
    np.testing.assert_allclose(small.bounds, full.bounds, atol=0.02 * full.scale)
    assert f"{len(small.faces):,} of its {len(full.faces):,} faces" in page.text


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is missing"), ("{", "can't be read"), ('{"scene": null}', "lacks config, method")]
)
def test_errors_are_reported_in_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(SystemExit) as exit:
        main(["report", str(tmp_path)])
    printed = capsys.readouterr().err.strip()
    assert exit.value.code == 1 and printed.startswith(f"error: {tmp_path / 'metrics.json'}: {message}")
    assert len(printed.splitlines()) == 1 and not (tmp_path / "report.html").exists()


def test_maps_of_another_size_are_rejected(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(evaluated, tmp_path / "out")
    for path in (tmp_path / "out" / "normal_camera_space").iterdir():
        write_exr(path, read_normals(path)[:20, :24])
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "out")])
    assert "rendered maps are 24x20" in capsys.readouterr().err


def test_the_registration_is_shown_with_residual_and_turn_of_each_view(evaluated: Path, tmp_path: Path):
    shutil.copytree(evaluated, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    views = [{"name": f"{i:02d}", "status": "ok", "reason": "", "residual_deg": 0.5 + i} for i in range(VIEWS)]
    views[2] |= {"status": "left out", "reason": "does not fit", "residual_deg": None}
    bias = {"applied": True, "reason": "", "rms_deg": 2.5, "std_deg": 0.1, "curve_deg": [[0, 0.0], [90, 3.0]]}
    record["registration"] = {"verdict": "doubtful", "reasons": ["one view is left out"], "views": views}
    record["registration"]["reflectance_bias"] = bias
    (tmp_path / "out" / "metrics.json").write_text(json.dumps(record))
    text = " ".join(Addresses(report(tmp_path / "out")).text.split())
    assert "lean away from the viewer by 2.50 ± 0.10 deg" in text and "it was removed" in text
    assert "Verdict: doubtful one view is left out" in text
    result = read_evaluated_result(tmp_path / "out")
    assert result.c2w is not None and result.given_c2w is not None
    cosine = (np.einsum("ij,ij", result.c2w[1, :3, :3], result.given_c2w[1, :3, :3]) - 1) / 2
    assert f"01ok 1.50° {np.rad2deg(np.arccos(cosine)):.2f}°" in text  # the scene's poses are some degrees off
    assert re.search(r"02left out\s*–\s*\d+\.\d\d°\s*does not fit", text)


def test_terms_are_explained_on_hover(page: str):
    explained = dict(
        (label, text) for text, label in re.findall(r'<abbr title="([^"]+)" tabindex="0">([^<]+)</abbr>', page)
    )
    assert "per radius of the scene" in explained["Least sharpness (inv_s), start and end"]
    assert "no scale" in explained["lengths in"] and "lengths in mm" in Addresses(page).text
    assert {"mask IoU", "F-score", "watertight", "mean curvature"} <= explained.keys()


def test_nothing_is_cut_off_on_a_narrow_page(evaluated: Path, page: str, opened: Opened):  # noqa: F811
    opened.page.set_viewport_size({"width": 400, "height": 800})
    opened.open(evaluated / "report.html")
    opened.pixels("#curves .chart")
    opened.pixels("#mesh .scene")
    too_wide = opened.page.evaluate(
        """() => [...document.querySelectorAll("header *, section *:not(.uplot *), footer *")].filter(element => {
            const box = element.getBoundingClientRect();
            const hides = getComputedStyle(element).overflowX != "visible" && element.scrollWidth > element.clientWidth + 1;
            return box.width > 0 && (box.right > window.innerWidth || box.left < 0 || hides);
        }).map(element => element.outerHTML.slice(0, 100))"""
    )
    assert too_wide == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    boxes = [view.bounding_box() for view in opened.page.locator("button.view").all()]
    assert len(boxes) == VIEWS and all(box is not None and box["x"] + box["width"] <= 400 for box in boxes)
    # The legend of the losses is below their plot.
    legend, plot = (
        opened.page.locator(f"#curves .chart {part}").first.bounding_box() for part in (".u-legend", ".u-over")
    )
    assert legend is not None and plot is not None
    assert legend["y"] >= plot["y"] + plot["height"] - 1 and legend["x"] + legend["width"] <= 400


def test_a_browser_draws_the_figures(evaluated: Path, page: str, opened: Opened):  # noqa: F811
    opened.open(evaluated / "report.html")
    for section in ("mesh", "cameras"):
        picture = opened.pixels(f"#{section} .frame").astype(int)
        assert opened.page.locator(f"#{section} canvas[role=img][aria-label*=scene]").count() == 1
        background = np.abs(picture - picture[-4, 4]).max(axis=-1) < 8  # a corner, within the card
        assert (0.03 if section == "mesh" else 0.01) < (~background).mean() < 0.9
        assert picture[~background].std() > 10  # shading or lines
    opened.pixels("#curves .chart")
    assert opened.page.locator("#curves .chart[role=img][aria-label*=losses] canvas").count() == 1
    opened.page.locator("button.view").nth(1).click()
    assert opened.page.locator("dialog[open] img").count() == 3
    # The axes of the charts follow the page's colors.
    opened.page.keyboard.press("Escape")
    assert opened.pixels("#curves .chart").mean() > 200
    opened.page.emulate_media(color_scheme="dark")
    opened.page.wait_for_timeout(100)
    chart = opened.pixels("#curves .chart")
    assert chart.mean() < 80 and chart.max() > 120
    assert opened.errors == [] and opened.requests == []


def test_a_mesh_is_colored_by_its_errors(evaluated: Path, page: str):
    """By its distances to the truth, and by its angles to the views' normals."""
    mesh, cameras = contents(page, "scene")
    (surface,) = mesh["surfaces"]
    assert [errors["name"] for errors in surface["errors"]] == ["distance error", "normal error"]
    assert surface["field"] is None and cameras["surfaces"][0]["errors"] == []
    known = np.frombuffer(base64.b64decode(surface["errors"][1]["values"]), dtype=np.uint8)[1::2]
    assert (known > 0).mean() > 0.3  # seen by a view
    assert re.fullmatch(r"mean \d+(\.\d+)? deg", surface["errors"][1]["mean"])
    assert [group["label"] for group in cameras["cameras"]] == ["given", "refined"]
    assert cameras["cameras"][1]["names"][3] == "03, refined"


def test_meshes_of_a_comparison_lie_over_each_other(evaluated: Path, tmp_path: Path):
    """Also those of methods whose worlds differ from the truth's: here by a turn, a scale and a shift."""
    other = np.eye(4)
    other[:3, :3] = 2.5 * np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    other[:3, 3] = [7, -30, 12]
    results = []
    for name, similarity in (("given", np.eye(4)), ("free", other)):
        folder = tmp_path / name / "result"
        shutil.copytree(evaluated, folder)
        mesh = trimesh.load_mesh(evaluated / "mesh.ply", process=False).apply_transform(similarity)
        mesh.export(folder / "mesh.ply")
        np.save(folder / "poses.npy", transform_poses(similarity, np.load(evaluated / "poses.npy")))
        record = json.loads((folder / "metrics.json").read_text())
        record["similarity"] = None if name == "given" else np.linalg.inv(similarity).tolist()
        (folder / "metrics.json").write_text(json.dumps(record))
        results.append(JobResult(name, record["scene"], 1, 1.0, 1.0, record, None, str(folder.parent)))
    write_comparison(tmp_path / "compare.html", Path(record["scene"]), results)
    (view,) = contents((tmp_path / "compare.html").read_text(), "scene")
    assert [surface["name"] for surface in view["surfaces"]] == ["given", "free"]
    bounds = []
    for surface in view["surfaces"]:
        steps = np.frombuffer(base64.b64decode(surface["positions"]), dtype="<u2").reshape(-1, 4)[:, :3]
        points = surface["reach"] * (steps / 32767.5 - 1)
        bounds.append([points.min(axis=0), points.max(axis=0)])
        distance, normal = surface["errors"]
        assert float(distance["mean"].split()[1]) < 0.2 and float(normal["mean"].split()[1]) < 10
    np.testing.assert_allclose(bounds[0], bounds[1], atol=0.01)


def test_photographs_color_the_mesh_and_a_broken_one_is_named(evaluated: Path, tmp_path: Path):
    out, scene = tmp_path / "out", tmp_path / "scene"
    record = json.loads((evaluated / "metrics.json").read_text())
    shutil.copytree(evaluated, out)
    shutil.copytree(record["scene"], scene)
    (out / "metrics.json").write_text(json.dumps(record | {"scene": str(scene), "config": None}))
    (scene / "image").mkdir()
    for i in range(VIEWS):
        Image.new("RGB", (96, 80), (200, 100, 50)).save(scene / "image" / f"{i:02d}.png")
    (surface,) = contents(report(out), "scene")[0]["surfaces"]
    assert surface["colors"]["name"] == "photographs" and not surface["colors"]["lit"]
    values = np.frombuffer(base64.b64decode(surface["colors"]["values"]), np.uint8).reshape(-1, 4)
    assert np.abs(values[:, :3].astype(int) - [200, 100, 50]).max() <= 2
    (scene / "image" / "02.png").write_bytes(b"not a picture")
    page = report(out)
    assert contents(page, "scene")[0]["surfaces"][0]["colors"] is None
    assert "No colors of the photographs" in Addresses(page).text and "02.png" in Addresses(page).text
