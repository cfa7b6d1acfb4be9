# SPDX-License-Identifier: Apache-2.0
"""The live page of a run: its lock, poses and residuals, and (slow) the whole page in a real browser."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
import viser
from helpers.browser import Opened, lit
from helpers.browser import live as browser_page  # noqa: F401
from helpers.scenes import SPHERE_CENTER, SPHERE_RADIUS
from helpers.serving import free_port
from helpers.training import make_config, set_up
from nerfstudio.cameras.cameras import Cameras

from pmni_nerfstudio.cli import main as pmni
from pmni_nerfstudio.training import startup
from pmni_nerfstudio.training.lock import MAX_CREDIT_SECONDS, VIEWER_SHARE, TrainingLock
from pmni_nerfstudio.training.trainer import PmniTrainer
from pmni_nerfstudio.viewer.frames import FrameRenderer
from pmni_nerfstudio.viewer.live import CPU_FRAME_PX, SCALE, LivePage
from pmni_nerfstudio.viewer.residuals import ViewResiduals

PATIENCE = 60.0


# ---- the lock ----


class Clock:
    """Clock that the test advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def hold_in_viewer_thread(lock: TrainingLock, clock: Clock, seconds: float) -> None:
    """Hold the lock in another thread, as a viewer's, for some seconds of the clock."""

    def hold() -> None:
        with lock:
            clock.now += seconds

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_viewer_threads_get_their_share_of_the_time_and_no_more():
    clock = Clock()
    lock = TrainingLock(lambda: True, clock)
    lock.open()
    held = frames = 0
    while clock.now < 1000:
        if lock.has_credit():
            hold_in_viewer_thread(lock, clock, 0.25)
            held, frames = held + 0.25, frames + 1
        else:
            with lock:  # a training step
                clock.now += 0.05
    assert frames > 100
    assert held == pytest.approx(VIEWER_SHARE * clock.now, rel=0.02, abs=MAX_CREDIT_SECONDS)


def test_viewer_time_is_unlimited_while_training_is_paused():
    clock, training = Clock(), [True]
    lock = TrainingLock(lambda: training[0], clock)
    lock.open()
    hold_in_viewer_thread(lock, clock, 10.0)
    assert not lock.has_credit()
    training[0] = False
    assert lock.has_credit()


def test_viewer_threads_wait_until_training_begins():
    lock, entered = TrainingLock(lambda: True), threading.Event()

    def page() -> None:
        with lock:
            entered.set()

    thread = threading.Thread(target=page)
    thread.start()
    with lock:  # the main thread, which sets up the training, does not wait
        pass
    assert not entered.wait(0.3)
    lock.open()
    assert entered.wait(PATIENCE)
    thread.join(PATIENCE)


def test_a_waiting_viewer_thread_goes_before_the_next_step():
    """A plain lock fails this: the training loop acquires the lock again before the other thread has woken up."""
    lock, entered, requested = TrainingLock(lambda: True), threading.Event(), threading.Event()
    lock.open()

    def page() -> None:
        requested.set()
        with lock:
            entered.set()

    with lock:
        thread = threading.Thread(target=page)
        thread.start()
        requested.wait(PATIENCE)
        while not lock._waiting:
            time.sleep(0.001)
    with lock:
        assert entered.is_set()
    thread.join(PATIENCE)


def test_only_the_holder_can_release():
    lock = TrainingLock(lambda: True)
    with pytest.raises(RuntimeError, match="not held"):
        lock.release()


# ---- rendering for a page ----


@pytest.fixture
def trainer(sphere_folder: Path, tmp_path: Path) -> PmniTrainer:
    """Trainer on the sphere scene with free poses, whose cached surface is the true sphere."""
    found = set_up(make_config("pmni", sphere_folder, tmp_path, 2))
    assert isinstance(found, PmniTrainer)
    axis = torch.linspace(-1, 1, 129)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    found.pipeline.model.grid.seed((points - torch.tensor(SPHERE_CENTER)).norm(dim=-1).float() - SPHERE_RADIUS)
    return found


def viewer_camera(c2w: torch.Tensor, view: int | None) -> Cameras:
    """Camera as the viewer makes it; `view` is its metadata's training view."""
    return Cameras(
        camera_to_worlds=c2w[None],
        fx=100.0,
        fy=100.0,
        cx=32.0,
        cy=32.0,
        width=64,
        height=64,
        metadata={"cam_idx": view},
    )


def test_pose_corrections_apply_to_training_cameras_only(trainer: PmniTrainer):
    poses = trainer.pipeline.model.camera_optimizer
    with torch.no_grad():
        poses.rotation[2] = torch.tensor([0.1, 0.0, 0.05])
    base = poses.base_c2w[2]
    torch.testing.assert_close(poses.apply_to_camera(viewer_camera(base, 2))[0], poses.c2w()[2])
    away = base.clone()
    away[:, 3] *= 0.9
    for camera, pose in ((viewer_camera(away, 2), away), (viewer_camera(base, None), base)):
        torch.testing.assert_close(poses.apply_to_camera(camera)[0], pose)


@pytest.mark.parametrize("turn_deg", [0.0, 10.0])
def test_angular_error_against_the_normals_of_the_nearest_view(turn_deg: float, trainer: PmniTrainer):
    """Points on the true sphere with normals rotated by a known angle, and points hidden from the view."""
    model = trainer.pipeline.model
    c2w = model.camera_optimizer.c2w()
    towards = torch.nn.functional.normalize(c2w[1, :, 3], dim=-1)
    random = torch.nn.functional.normalize(torch.randn(400, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    front = random[(random @ towards) > 0.6]
    axis = torch.nn.functional.normalize(torch.linalg.cross(front, random.flip(0)[: len(front)]), dim=-1)
    turn = torch.deg2rad(torch.tensor(turn_deg))
    normals = front * turn.cos() + torch.linalg.cross(axis, front) * turn.sin()

    def errors(directions: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
        eye = 2.0 * towards  # between the object and view 1
        return model.supervision.nearest_view_error_deg(
            torch.tensor(SPHERE_CENTER).float() + SPHERE_RADIUS * directions,
            normals,
            eye,
            model.camera_optimizer,
            model.grid,
        )

    found = errors(front, normals)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, torch.full_like(found, turn_deg), atol=1.0, rtol=0)  # half floats, bilinear
    assert not bool(errors(-front, -front).isfinite().any())


def test_residuals_are_mean_angles_per_view(trainer: PmniTrainer):
    """Known angles in two views, pixels off the mask in a third, and one in a hole; views without pixels keep their residuals."""
    model = trainer.pipeline.model
    rotation = model.camera_optimizer.w2c_opencv()[:, :, :3].detach()
    view = torch.tensor([0, 0, 1, 1, 2, 0])
    observed = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    aside = torch.nn.functional.normalize(torch.linalg.cross(observed, torch.ones(6, 3)), dim=-1)
    angle = torch.deg2rad(torch.tensor([10.0, 20.0, 4.0, 4.0, 50.0, 60.0]))[:, None]
    rendered = observed * angle.cos() + aside * angle.sin()
    outputs = {
        "normal_world": (rotation[view].mT @ rendered[..., None])[..., 0],
        "accumulation": torch.ones(6, 1),
    }
    mask = torch.tensor([1.0, 1, 1, 1, 0, 1])[:, None]
    observed[5] = 0
    batch = {"indices": torch.stack([view, view, view], dim=1), "mask": mask, "normal": observed}
    count = len(rotation)
    residuals = ViewResiduals(model, count)
    assert np.isnan(residuals.read()).all()
    before = np.arange(count) + 1.0
    residuals.set(before)
    residuals.add_batch({"accumulation": torch.ones(6, 1)}, batch)
    np.testing.assert_array_equal(residuals.read(), before)
    residuals.add_batch(outputs, batch)
    for _ in range(2):
        np.testing.assert_allclose(residuals.read(), [15.0, 4.0, *before[2:]], atol=1e-3)


# ---- in a browser ----


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    """Scene with rough poses."""
    scene = tmp_path / "scene"
    size = ["--width", "76", "--height", "64", "--views", "12"]
    pmni(["synth", str(scene), "--shape", "figure", "--rotation-noise-deg", "5", *size])
    return scene


def waited_for(condition: Callable[[], bool], page: Opened) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < PATIENCE, "timeout"
        page.page.wait_for_timeout(100)


class Run:
    """Training run with a live page, in a thread of its own."""

    def __init__(self, scene: Path, out: Path) -> None:
        self.port = free_port()
        config = make_config(
            "pmni",
            scene,
            out,
            100_000,
            vis="viewer+tensorboard",
            viewer__websocket_port=self.port,
            pipeline__model__converged_normals_deg=0.0,
            pipeline__model__registration=True,
            pipeline__model__schedule_steps=300,
        )
        self.trainer: PmniTrainer | None = None
        self.config = config
        self.failed: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            trainer = self.config.setup(local_rank=0, world_size=1)
            self.config.save_config()
            self.trainer = trainer
            trainer.setup()
            trainer.train()
        except BaseException as error:
            self.failed.append(error)
            raise

    @property
    def live(self) -> LivePage:
        assert self.trainer is not None
        return self.trainer.pipeline.live

    @property
    def step(self) -> int:
        assert self.trainer is not None
        return self.trainer.step

    def reached(self, steps: int) -> bool:
        assert not self.failed, self.failed
        return self.trainer is not None and self.trainer.step >= steps

    @property
    def page_is_up(self) -> bool:
        assert not self.failed, self.failed
        return getattr(self.trainer, "pipeline", None) is not None and self.live.attached


@pytest.fixture
def run(figure: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    find_initialization = startup.find_initialization

    def after_a_visit(model: Any, views: Any, folder: Path, page: LivePage, shared: Path) -> Any:
        """Register once a browser shows the page: on a busy machine it takes longer to load than the registration."""
        start = time.monotonic()
        while not page.viser_server.get_clients() and time.monotonic() - start < PATIENCE:
            time.sleep(0.1)
        return find_initialization(model, views, folder, page, shared)

    monkeypatch.setattr(startup, "find_initialization", after_a_visit)
    found = Run(figure, tmp_path / "out")
    yield found
    if found.page_is_up:
        found.trainer.stop_training = True
        found.thread.join(PATIENCE)
        assert not found.thread.is_alive()


def page_position(live: LivePage, view: int, page: Opened) -> tuple[float, float]:
    """Page coordinates of the center of a camera's image."""
    (client,) = live.viser_server.get_clients().values()
    camera, handle = client.camera, live.frusta.handles[view]
    to_world = viser.transforms.SO3(camera.wxyz).as_matrix()
    middle = handle.position + live.frusta.image_distance(view) * viser.transforms.SO3(handle.wxyz).as_matrix()[:, 2]
    x, y, z = to_world.T @ (middle - camera.position)
    box = page.page.locator("canvas").first.bounding_box()
    assert box is not None and z > 0
    focal = box["height"] / 2 / np.tan(camera.fov / 2)
    # The panel covers the right part of the canvas; the view is centered in the rest.
    return box["x"] + camera.aspect * box["height"] / 2 + focal * x / z, box["y"] + box["height"] / 2 + focal * y / z


@pytest.mark.slow
def test_the_page_follows_a_run_from_registration_on(
    browser_page: Opened,  # noqa: F811
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    page, waits = browser_page, lambda condition: waited_for(condition, browser_page)
    waits(lambda: run.page_is_up)
    page.visit(f"http://127.0.0.1:{run.port}")
    # Registration: its surface and cameras are shown, before any frame is rendered.
    page.page.get_by_text("Registration").first.wait_for()
    page.canvas(until=lambda picture: lit(picture).sum() > 1000)
    # Training: rendered frames replace the mesh.
    page.page.get_by_text("Training: step").first.wait_for()
    waits(lambda: run.reached(20))
    live, trainer = run.live, run.trainer
    assert trainer is not None
    page.page.get_by_text("Registration: ok").first.wait_for()
    first = page.canvas(until=lambda picture: lit(picture).sum() > 1000)
    seen_at = run.step
    waits(lambda: run.reached(seen_at + 60))
    page.canvas(until=lambda picture: np.abs(picture.astype(int) - first).mean() > 0.2)

    # While training goes on, frames are small after a drag, and sharp once the camera rests.
    sizes: list[int] = []
    send = FrameRenderer._send_output_to_viewer

    def note(self: FrameRenderer, outputs: dict[str, Any], static_render: bool = True) -> None:
        sizes.append(max(outputs["rgb"].shape))
        send(self, outputs, static_render)

    monkeypatch.setattr(FrameRenderer, "_send_output_to_viewer", note)
    page.page.mouse.move(300, 450)
    page.page.mouse.down()
    for x in range(300, 360, 10):
        page.page.mouse.move(x, 450)
    page.page.mouse.up()
    waits(lambda: any(size < CPU_FRAME_PX for size in sizes) and sizes[-1] == CPU_FRAME_PX)
    options = live.viewer.control_panel._output_render.options
    assert options == ["shaded", "normals", "depth", "angular error", "opacity"]
    live.viewer.control_panel._output_render.value = "angular error"
    page.page.get_by_text("0 to 30 deg and more").wait_for()
    live.viewer.control_panel._output_render.value = "shaded"

    # The cameras are at the optimizer's poses, which differ from the initial ones.
    poses = trainer.pipeline.model.camera_optimizer
    live._place_cameras()
    placed = np.stack([handle.position for handle in live.frusta.handles])
    np.testing.assert_allclose(placed, SCALE * poses.c2w().detach()[:, :, 3].numpy(), atol=0.02)
    assert np.abs(placed - SCALE * poses.base_c2w[:, :, 3].numpy()).max() > 1.0
    with_cameras = page.canvas()
    live.panel._cameras.value = "hidden"
    live._place_cameras()
    page.canvas(until=lambda picture: np.abs(picture.astype(int) - with_cameras).max() > 60)
    live.panel._cameras.value = "refined"
    overtaken = slow_placement(live)
    live.panel._cameras.value = "start"
    live._place_cameras()
    overtaken.join()
    placed = np.stack([handle.position for handle in live.frusta.handles])
    np.testing.assert_allclose(placed, SCALE * poses.base_c2w[:, :, 3].numpy(), atol=1e-3)
    live.panel._cameras.value = "refined"
    live._place_cameras()

    # Pause stops training; all other controls work.
    page.page.get_by_text("Pause Training").click()
    waits(lambda: trainer.training_state == "paused")
    controller = trainer.controller

    def is_paused() -> bool:  # no step has ended for a while
        before = controller.steps_done
        page.page.wait_for_timeout(3000)
        return controller.steps_done == before

    waits(is_paused)
    paused_at = controller.steps_done
    page.page.get_by_text("Save checkpoint now").click()
    folder = trainer.config.get_checkpoint_dir()
    waits(lambda: bool(list(folder.glob("*.ckpt"))))
    (saved,) = folder.glob("*.ckpt")
    # A step that had begun before the pause may have waited for a rendering to end.
    assert torch.load(saved, weights_only=True, map_location="cpu")["step"] in (paused_at - 1, paused_at)
    page.page.get_by_text("Export mesh now").click()
    waits(lambda: bool(list(trainer.base_dir.glob("mesh-*.ply"))))
    (written,) = trainer.base_dir.glob("mesh-*.ply")
    assert trimesh.load(written, process=False).is_watertight
    page.page.get_by_text("Wrote mesh-").wait_for()
    before = page.canvas()
    page.page.get_by_label("Mesh overlay").click(force=True)
    page.canvas(until=lambda picture: np.abs(picture.astype(int) - before).mean() > 0.5)
    if "PMNI_SCREENSHOT" in os.environ:
        page.page.wait_for_timeout(1500)
        page.page.screenshot(path=os.environ["PMNI_SCREENSHOT"])
    page.page.get_by_label("Mesh overlay").click(force=True)

    # A click on a camera moves the client there, and shows input and rendered normals.
    (client,) = live.viser_server.get_clients().values()
    places = {view: page_position(live, view, page) for view in range(12) if in_front(live, view)}
    view = min(places, key=lambda v: np.hypot(places[v][0] - 400, places[v][1] - 200))
    page.page.mouse.click(*places[view])
    waits(lambda: bool(np.allclose(client.camera.position, live.frusta.handles[view].position, atol=0.5)))
    waits(
        lambda: bool(np.isclose(client.camera.fov, live.frusta.fov[view], rtol=1e-3))
    )  # the client may first report the earlier value again
    page.page.get_by_text("input, rendered, error").wait_for()
    assert page.page.locator("img[src^='data:image/png']").count() == 1

    page.page.get_by_text("Resume Training").click()
    waits(lambda: run.reached(paused_at + 5))
    assert not run.failed
    assert page.errors == [] and page.requests == []


def slow_placement(live: LivePage) -> threading.Thread:
    """Place the cameras in a thread of its own, which has read the selection and not yet moved a camera."""
    place, began = live.frusta.place, threading.Event()

    def place_slowly(c2w: "np.ndarray | None") -> None:
        live.frusta.place = place
        began.set()
        time.sleep(0.5)
        place(c2w)

    live.frusta.place = place_slowly
    thread = threading.Thread(target=live._place_cameras)
    thread.start()
    assert began.wait(10)
    return thread


def in_front(live: LivePage, view: int) -> bool:
    (client,) = live.viser_server.get_clients().values()
    forward = viser.transforms.SO3(client.camera.wxyz).as_matrix()[:, 2]
    return bool(forward @ (live.frusta.handles[view].position - client.camera.position) > 0)
