# SPDX-License-Identifier: Apache-2.0
"""Camera poses from normal maps and masks alone: `pmni register` and what one might use instead, on the same scenes.

    python benchmarks/bench_poses.py [--shapes figure] [--orders ring shuffled handheld] [--views 20] [--output FILE]
        [--scene SCENE TRUTH ...] [--methods pmni normals shaded open3d] [--pycolmap-python PYTHON]

Methods: `pmni register` without poses; COLMAP's incremental structure from motion on the normal maps as RGB pictures, and
on pictures shaded from them by a light at the camera; Open3D's multiway registration of the integrated depth maps (FPFH
features, global registration of all pairs, ICP, pose graph). COLMAP gets the true intrinsics, which stay fixed, the masks,
and pictures enlarged --enlarge times. Only the first method may use the order of the views.

Scenes: shapes of `pmni synth` from cameras on a ring in order, on the same ring in random order, or "handheld": around the
object at any height from 15 deg below to 60 deg above it, rolled by up to 20 deg, in random order. --scene adds own data
with true poses: TRUTH is a file of camera-to-world matrices with OpenCV axes, one for each view in the order of the
scene's names: .npy (N, 4, 4), or .npz with an array c2w.

Errors are angles between estimated and true orientations after the one rotation of the world that the most views agree on
within 5 deg. Mean and worst are those of the registered views. Seconds are wall time from the scene folder to the poses;
CPU seconds include child processes and depend less on what else the machine does.

pycolmap is not a dependency of this package: install it into an environment of its own and give its interpreter with
--pycolmap-python. Without it the rows of COLMAP say "not installed".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float
from pose_scores import Score, score
from rich.console import Console
from rich.table import Table

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.geometry.camera_rings import look_at
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.registration.views import views_of_scene
from pmni_nerfstudio.studies.processes import run_command
from pmni_nerfstudio.synth.render import render
from pmni_nerfstudio.synth.rig import intrinsics, ring
from pmni_nerfstudio.synth.shapes import SHAPES

DISTANCE = 15.0
"""Distance of the cameras in radii of the object, as `pmni synth` has it."""
METHODS = {
    "pmni": "pmni register",
    "normals": "COLMAP, normals as RGB",
    "shaded": "COLMAP, shaded",
    "open3d": "Open3D multiway",
}
ORDERS = ("ring", "shuffled", "handheld")


class Unavailable(Exception):
    """A method cannot run here; the message says why."""


@dataclass(frozen=True)
class Case:
    """A scene folder without poses, and its true poses."""

    name: str
    folder: Path
    c2w_true: Float[np.ndarray, "n 4 4"]


@dataclass(frozen=True)
class Outcome:
    """Result of a method on a scene."""

    scene: str
    method: str
    score: Score | None
    """None if the method could not run."""
    seconds: float = 0.0
    """Wall time."""
    cpu_seconds: float = 0.0
    """CPU time, child processes included."""
    note: str = ""

    def as_dict(self) -> dict:
        """For the JSON file."""
        scores = self.score.as_dict() if self.score is not None else {}
        return {
            "scene": self.scene,
            "method": self.method,
            **scores,
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "note": self.note,
        }


# ---- scenes


def camera_poses(order: str, views: int, rng: np.random.Generator) -> Float[np.ndarray, "n 4 4"]:
    """True poses of a capture, camera-to-world, OpenCV axes."""
    if order != "handheld":
        c2w = ring(views, 25.0, DISTANCE, 1.0, False, rng)
        return c2w if order == "ring" else c2w[rng.permutation(views)]
    azimuth = 2 * np.pi * rng.permutation(views) / views + rng.uniform(-0.1, 0.1, views)
    elevation = np.deg2rad(rng.uniform(-15, 60, views))
    toward = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
    )
    roll = np.deg2rad(rng.uniform(-20, 20, views))
    side = np.cross(toward, [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    up = np.cos(roll)[:, None] * np.cross(side, toward) + np.sin(roll)[:, None] * side
    eye = DISTANCE * rng.uniform(0.95, 1.1, (views, 1)) * toward
    return look_at(eye, rng.uniform(-0.05, 0.05, (views, 3)), up)


def make_case(folder: Path, shape: str, order: str, size: tuple[int, int, int], seed: int) -> Case:
    """Render a capture, and write its maps and intrinsics as a scene folder.

    Args:
        folder: folder to write to.
        shape: shape of `pmni synth`.
        order: one of ORDERS.
        size: number of views, width and height.
        seed: random seed of the cameras; "ring" and "shuffled" of one seed have the same views.
    """
    views, width, height = size
    c2w = camera_poses(order, views, np.random.default_rng(seed))
    K = intrinsics(width, height, DISTANCE)
    masks, normals, _ = render(SHAPES[shape], K, c2w, width, height)
    write_scene(
        folder,
        names=[f"{i:03d}" for i in range(views)],
        K=np.broadcast_to(K, (views, 3, 3)),
        c2w=None,
        world_from_unit=np.eye(4),
        masks=masks,
        normals=normals,
    )
    return Case(f"{shape}, {order}", folder, c2w)


def own_case(folder: Path, truth: Path) -> Case:
    """A given scene with its true poses.

    Raises:
        PmniError: the scene has poses, which `pmni register` would use, or the truth does not fit it.
    """
    scene = read_scene(folder, with_depths=False)
    if scene.c2w is not None:
        raise PmniError(f"{folder}: has poses; give a copy with an intrinsics.json instead")
    loaded = np.load(truth)
    c2w = loaded if isinstance(loaded, np.ndarray) else loaded["c2w"]
    if c2w.shape != (scene.num_views, 4, 4):
        raise PmniError(f"{truth}: has poses of shape {c2w.shape} for {scene.num_views} views")
    return Case(folder.name, folder, c2w)


# ---- methods: from a scene folder and an empty output folder to poses, NaN for views without one


def register(case: Case, out: Path) -> Float[np.ndarray, "n 4 4"]:
    """`pmni register`, in a process of its own. It may fail and still write its poses, which then count."""
    words = [sys.executable, "-m", "pmni_nerfstudio", "register", str(case.folder), "--output-dir", str(out)]
    try:
        run_command(words, out / "register.log")
    except PmniError:
        if not (out / "poses.npy").is_file():
            raise
    return np.load(out / "poses.npy")


def pycolmap_python(choice: str | None) -> str:
    """Interpreter that has pycolmap.

    Raises:
        Unavailable: it cannot be imported there.
    """
    python = choice if choice is not None else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_command([python, "-c", "import pycolmap"], Path(folder) / "log")
        except (PmniError, OSError):
            raise Unavailable("pycolmap is not installed") from None
    return python


def write_pictures(scene: Scene, is_shaded: bool, enlarge: int, out: Path) -> None:
    """Write pictures, masks and the camera for colmap_poses.py. The background is black, and masked."""
    size = (scene.width * enlarge, scene.height * enlarge)
    for folder in ("image", "mask"):
        (out / folder).mkdir()
    for name, half, mask in zip(scene.names, scene.normals, scene.masks):
        normals = half.astype(np.float32)
        if is_shaded:
            picture = 0.1 + 0.9 * np.maximum(0, -normals[..., 2])
        else:
            picture = np.asarray(normals_to_rgb(normals, mask[..., None]))
        picture = picture * (mask if is_shaded else mask[..., None])
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
        write_png(out / "image" / f"{name}.png", np.rint(255 * picture.clip(0, 1)).astype(np.uint8))
        large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        write_png(out / "mask" / f"{name}.png.png", large.astype(bool))
    K = scene.K[0]
    camera = {
        "fx": K[0, 0] * enlarge,
        "fy": K[1, 1] * enlarge,
        "cx": (K[0, 2] + 0.5) * enlarge,  # COLMAP counts from the corner of the first pixel
        "cy": (K[1, 2] + 0.5) * enlarge,
    }
    (out / "camera.json").write_text(json.dumps(camera))


def colmap(
    case: Case, out: Path, is_shaded: bool, enlarge: int, python: Callable[[], str]
) -> Float[np.ndarray, "n 4 4"]:
    """COLMAP's structure from motion on pictures made of the normal maps."""
    interpreter = python()
    scene = read_scene(case.folder, with_depths=False)
    write_pictures(scene, is_shaded, enlarge, out)
    script = Path(__file__).with_name("colmap_poses.py")
    run_command([interpreter, str(script), str(out)], out / "colmap.log")
    poses = json.loads((out / "poses.json").read_text())
    missing = np.full((4, 4), np.nan)
    return np.array([poses.get(name, missing) for name in scene.names], dtype=float)


def open3d(case: Case, out: Path) -> Float[np.ndarray, "n 4 4"]:
    """Open3D's multiway registration, in this process."""
    from open3d_poses import open3d_poses

    return open3d_poses(views_of_scene(read_scene(case.folder, with_depths=False)))


def measure(name: str, method: Callable[[Case, Path], np.ndarray], case: Case, out: Path) -> Outcome:
    """Run a method on a scene. One that fails has registered no view."""
    out.mkdir(parents=True)
    start, cpu = time.perf_counter(), cpu_seconds()
    try:
        c2w, note = method(case, out), ""
    except Unavailable as error:
        return Outcome(case.name, name, None, note=str(error))
    except PmniError as error:
        c2w, note = np.full_like(case.c2w_true, np.nan), str(error)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    return Outcome(case.name, name, score(c2w, case.c2w_true), seconds, cpu, note)


def cpu_seconds() -> float:
    """CPU time of this process and of its ended children so far."""
    return sum(os.times()[:4])


# ---- command line


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """The outcomes as a table."""
    table = Table(title="camera poses without initial poses; errors in degrees")
    for column in ("scene", "method", "views", "under 1 deg", "under 5 deg", "mean", "worst", "seconds", "CPU s"):
        is_text = column in ("scene", "method")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=is_text)
    previous = ""
    for outcome in outcomes:
        if outcome.scene != previous and previous:
            table.add_section()
        scene, previous = outcome.scene if outcome.scene != previous else "", outcome.scene
        table.add_row(scene, METHODS[outcome.method], *cells(outcome))
    return table


def cells(outcome: Outcome) -> list[str]:
    """Cells of an outcome behind scene and method."""
    s = outcome.score
    if s is None:
        return ["not installed", *[""] * 6]
    mean, worst = ("-" if x is None else f"{x:.2f}" for x in (s.mean_deg, s.worst_deg))
    found = [f"{s.registered} of {s.views}", str(s.under_1deg), str(s.under_5deg)]
    return [*found, mean, worst, f"{outcome.seconds:.0f}", f"{outcome.cpu_seconds:.0f}"]


def cases_of(arguments: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Given scenes, then synthetic ones, each made when it is needed."""
    for scene, truth in arguments.scene:
        yield own_case(Path(scene), Path(truth))
    size = (arguments.views, arguments.width, arguments.height)
    for shape in arguments.shapes:
        for order in arguments.orders:
            yield make_case(folder / f"{shape}_{order}", shape, order, size, arguments.seed)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=["figure", "knot", "bracket"])
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--width", type=int, default=153)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="random seed of the cameras")
    parser.add_argument(
        "--scene", nargs=2, action="append", default=[], metavar=("SCENE", "TRUTH"), help="own scene; repeatable"
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--enlarge", type=int, default=4, help="size of COLMAP's pictures relative to the normal maps")
    parser.add_argument("--pycolmap-python", help="Python interpreter that has pycolmap; default: this one")
    parser.add_argument("--output", type=Path, help="JSON file to write the results to")
    return parser.parse_args()


def main() -> None:
    """Run all methods on all scenes, and print a table."""
    arguments = parse()
    console = Console(width=120)

    def python() -> str:
        return pycolmap_python(arguments.pycolmap_python)

    methods = {
        "pmni": register,
        "normals": partial(colmap, is_shaded=False, enlarge=arguments.enlarge, python=python),
        "shaded": partial(colmap, is_shaded=True, enlarge=arguments.enlarge, python=python),
        "open3d": open3d,
    }
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        for number, case in enumerate(cases_of(arguments, Path(name))):
            for method in arguments.methods:
                outcome = measure(method, methods[method], case, Path(name) / f"out{number}_{method}")
                outcomes.append(outcome)
                console.print("done:", case.name, METHODS[method], *cells(outcome), outcome.note, markup=False)
                if arguments.output is not None:
                    write_json(arguments.output, [outcome.as_dict() for outcome in outcomes])
    console.print(table_of(outcomes))


if __name__ == "__main__":
    with exit_on_error():
        main()
