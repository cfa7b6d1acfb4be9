# SPDX-License-Identifier: Apache-2.0
"""Live page of a run: additions to nerfstudio's viewer for registration, refined cameras and mesh export.

nerfstudio's viewer passes itself to every `ViewerControl` that it finds in a pipeline, and the live page is one, so that
it appears in `ns-train` and in `ns-viewer`. The world of the page is the unit-sphere world, scaled by nerfstudio's factor
for pages. An open page slows training, because frames are rendered between the steps.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Dict, List, Optional, cast

import numpy as np
import torch
import viser
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.render_state_machine import RenderAction
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO as SCALE
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl

from pmni_nerfstudio.data.dataset import PmniDataset
from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.geometry.transforms import opencv_from_nerfstudio
from pmni_nerfstudio.registration.monitoring import Snapshot
from pmni_nerfstudio.training.lock import TrainingLock
from pmni_nerfstudio.viewer.actions import WAIT_SECONDS, PageActions
from pmni_nerfstudio.viewer.frames import LEGENDS, FrameRenderer, legend_bar
from pmni_nerfstudio.viewer.frusta import Frusta
from pmni_nerfstudio.viewer.home import Home, home_from_cameras
from pmni_nerfstudio.viewer.overlay import Overlay, show_mesh
from pmni_nerfstudio.viewer.panel import CameraSet, Controls, Panel
from pmni_nerfstudio.viewer.residuals import ViewResiduals

if TYPE_CHECKING:
    from pmni_nerfstudio.model.pmni_model import PmniModel
    from pmni_nerfstudio.training.trainer import PmniTrainer

PANEL_SECONDS, PLOT_SECONDS = 1.0, 4.0
"""Minimum time between two updates of the panel and the cameras, and of the plot, in seconds."""
RESIDUALS_EVERY = 5
"""Interval, in training steps, at which a batch is used for the views' residuals."""
CPU_FRAME_PX = 256
"""Initial value of "Max Res", the longer side of a frame in pixels, for training without a GPU."""
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
"""Addresses on which only this machine reaches a page."""
REGISTRATION_RESIDUAL = (
    "Residual: median angle between the view's normals and the mean of all views' normals on the surface. When training "
    "begins, another residual follows."
)
TRAINING_RESIDUAL = (
    "Residual: mean angle between the view's normals and the rendered ones. It is larger than that of the registration, "
    "which is a median and compares with the mean of the views."
)
REGISTERED_RESIDUAL = "Residual of the registration: mean angle between the view's normals and those of its surface."
"""Explanation of the views' residual bars."""
FLUSH_SECONDS = 0.3
"""Time in seconds for the last message to reach the browsers."""


class LivePage(ViewerControl):
    """Live page of a run. It receives the progress of registration as a `Watcher`, and that of training."""

    viewer: Viewer
    attached = False
    """Whether a viewer is running."""

    def _setup(self, viewer: Viewer) -> None:
        """Build the page; called by nerfstudio's viewer at the end of its construction."""
        super()._setup(viewer)
        server, pipeline = viewer.viser_server, viewer.pipeline
        self._model = model = cast("PmniModel", pipeline.model)
        dataset = pipeline.datamanager.train_dataset
        assert isinstance(dataset, PmniDataset)
        self._dataset = dataset
        names = [dataset.scene.names[i] for i in dataset.views]
        self._adapt_nerfstudio_page()
        self._start_c2w = opencv_from_nerfstudio(model.camera_optimizer.base_c2w)
        self._snapshot: Optional[Snapshot] = None
        self._residuals = ViewResiduals(model, len(names))
        self._renderers: List[FrameRenderer] = []
        self._placing = threading.Lock()
        self._step, self._panel_updated_at, self._plot_updated_at = 0, -np.inf, -np.inf
        images = [dataset.get_numpy_image(i) for i in range(len(names))]
        K, page_c2w = dataset.scene.K[list(dataset.views)], self._page_poses(self._start_c2w)
        self.frusta = Frusta(server, names, K, images, SCALE, page_c2w, self._clicked)
        lock = viewer.train_lock
        assert lock is not None
        self._add_panel(names, lock)
        self._overlay = Overlay(server, model.field.sdf, model.device, lock, lambda: self._step, SCALE)
        self._mesh: Optional[viser.MeshHandle] = None
        self._registering = self._trainer is not None
        Home(server, SCALE, *home_from_cameras(page_c2w))
        server.on_client_connect(self._connected)
        self.attached = True
        if self._trainer is None:
            self.panel.show_stage("A trained run", None)
            self._show_verdict()
            self.panel.enable()
            self._place_cameras()
            self._show_residuals_of_registration(names)
        else:
            self.panel.show_stage("Setting up", 0.0)
            CONSOLE.print(f"[bold green]{viewer.viewer_info[0]}", highlight=False, soft_wrap=True)

    def _adapt_nerfstudio_page(self) -> None:
        """Replace or hide what nerfstudio's page has and this one does differently."""
        viewer = self.viewer
        # Replaces nerfstudio's theme, whose title and links load files from other servers.
        self.viser_server.gui.configure_theme(control_layout="collapsible", dark_mode=True, brand_color=(76, 155, 232))
        # Hides nerfstudio's cameras, which show the dataset's poses and not the refined ones.
        viewer.config = dataclasses.replace(viewer.config, max_num_display_images=0)
        viewer.hide_images.visible = viewer.show_images.visible = False
        if self._trainer is None:
            viewer.pause_train.visible = viewer.resume_train.visible = False
        self._simplify_controls()
        if self._model.device.type == "cpu" and self._trainer is not None:
            viewer.control_panel._max_res.value = CPU_FRAME_PX

    def _add_panel(self, names: List[str], lock: threading.Lock) -> None:
        """Add the panel of this package, and the actions of its buttons."""
        model, viewer, trainer = self._model, self.viewer, self._trainer
        camera_sets: List[CameraSet] = ["refined", "registered", "start", "hidden"]
        if not model.camera_optimizer.enabled:
            camera_sets = ["refined", "hidden"]
        elif not model.uses_registration:
            camera_sets.remove("registered")
        folder = viewer.log_filename.parent
        self.actions = PageActions(model, self._dataset.scene, folder, lock, trainer, lambda: self._step)
        save = self.actions.save if self.actions.can_save else None
        # ns-train listens on this machine unless told otherwise; ns-viewer on all addresses, and its default is not ours.
        may_write = trainer is not None or viewer.config.websocket_host in THIS_MACHINE
        export = self.actions.export if may_write else None
        controls = Controls(self._place_cameras, self._show_overlay, export, save)
        self.panel = Panel(self.viser_server, names, camera_sets, controls)

    @property
    def _trainer(self) -> Optional[PmniTrainer]:
        return cast("Optional[PmniTrainer]", self.viewer.trainer)

    @property
    def _can_render(self) -> bool:
        """Whether the field can be rendered, which is not so before training begins."""
        lock = self.viewer.train_lock
        return not isinstance(lock, TrainingLock) or lock.is_open

    def _simplify_controls(self) -> None:
        """Hide the controls of nerfstudio that have no effect here, and its crop box until somebody enables it.

        Our outputs are color images, so that color scales have no settings.
        """
        panel = self.viewer.control_panel
        scales = [*panel._elements_by_tag.pop("colormap"), *panel._elements_by_tag.pop("split_colormap")]
        panel.update_control_panel()
        # The lock decides how much of the time the page gets.
        for element in (panel._train_speed, panel._train_util, panel._colormap, *scales):
            element.set_hidden(True)
        selected = panel._output_render.gui_handle
        assert selected is not None
        selected.on_update(lambda _: self._show_legend())

    def _show_legend(self) -> None:
        output = self.viewer.control_panel.output_render
        self.panel.show_legend(output, LEGENDS.get(output, ""), legend_bar(output))

    # ---- registration ----

    def progress(self, stage: str, done: float, residual: float) -> None:
        """Show the progress of registration; see `Watcher`."""
        self.panel.show_stage(f"**Registration**: {stage}", done)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Show intermediate poses and surface of registration; see `Watcher`."""
        self._snapshot = snapshot
        if snapshot.residual_deg is not None:
            self._residuals.set(snapshot.residual_deg)
        if snapshot.mesh is not None:
            vertices, faces = snapshot.mesh
            self._mesh = show_mesh(self.viser_server, SCALE * vertices, faces)
        self._place_cameras()
        self._plot_residuals()

    def _show_verdict(self) -> None:
        statistics = self._model.registration_statistics
        if statistics is not None:
            self.panel.show_verdict(statistics["verdict"], statistics["reasons"])

    def _show_residuals_of_registration(self, names: List[str]) -> None:
        """Show the residuals that a trained run's registration had."""
        statistics = self._model.registration_statistics
        if statistics is not None:
            known = {view["name"]: view["residual_deg"] for view in statistics["views"]}
            self._residuals.set(np.array([known.get(name, np.nan) for name in names]))
            self._plot_residuals()

    # ---- training ----

    def begin(self) -> None:
        """Show that training begins: rendered frames replace the mesh of registration."""
        self._snapshot = None
        self._registering = False
        if self._mesh is not None:
            self._mesh.remove()
            self._mesh = None
        self.panel.enable()
        self._show_verdict()
        self._show_overlay()
        self._place_cameras()

    def finish(self, lines: Sequence[str]) -> None:
        """Show that training has ended, with lines about its result."""
        self._step += 1
        self._place_cameras()
        self._plot_residuals()
        self.viewer.pause_train.visible = self.viewer.resume_train.visible = False
        self.panel.show_end(lines)
        if self._closes_at_end:
            self._notify(f"Training has ended; --viewer.quit-on-train-completion False keeps this page. {lines[-1]}")

    @property
    def _closes_at_end(self) -> bool:
        trainer = self._trainer
        return trainer is not None and trainer.config.viewer.quit_on_train_completion

    def _notify(self, text: str) -> None:
        """Show a message in all browsers, which stays there when the page has closed."""
        clients = self.viser_server.get_clients().values()
        for client in clients:
            client.add_notification("", text)
        if clients:
            time.sleep(FLUSH_SECONDS)

    def close(self) -> None:
        """Stop the server and the threads of the page, because a thread that renders during Python's shutdown crashes it."""
        if not self.attached:
            return
        self.attached = False
        self.actions.close()
        # Before training, threads wait for a lock that does not open any more, and render nothing.
        for renderer in self._renderers if self._can_render else ():
            renderer.finish()
        self._overlay.close()
        self.viser_server.stop()

    def update(self, step: int) -> None:
        """Update the page after a training step, if it is open in a browser."""
        viewer = self.viewer
        viewer.step = self._step = step
        if not viewer.render_statemachines:
            return
        lock, now = viewer.train_lock, time.perf_counter()
        if not isinstance(lock, TrainingLock) or lock.has_credit():
            self._request_frames()
        if now - self._panel_updated_at < PANEL_SECONDS:
            return
        self._panel_updated_at = now
        assert self._trainer is not None and self._trainer.controller is not None
        run = self._trainer.controller
        self.panel.show_stage(
            f"**Training**: step {step + 1}, schedule of {run.schedule_steps}, at most {run.max_steps}",
            (step + 1) / max(run.schedule_steps, 1),
        )
        viewer.update_step(step)
        self._place_cameras()
        if now - self._plot_updated_at >= PLOT_SECONDS:
            self._plot_updated_at = now
            self._plot_residuals()

    def add_batch(self, outputs: Dict[str, Any], batch: Dict[str, torch.Tensor]) -> None:
        """Collect the views' residuals from some of the training batches, if the page is open in a browser."""
        if self.attached and self.viewer.render_statemachines and self._step % RESIDUALS_EVERY == 0:
            self._residuals.add_batch(outputs, batch)

    def _request_frames(self) -> None:
        viewer = self.viewer
        for key, client in viewer.viser_server.get_clients().items():
            machine = viewer.render_statemachines.get(key)
            if machine is not None:
                machine.action(RenderAction("step", viewer.get_camera_state(client)))

    def _connected(self, client: viser.ClientHandle) -> None:
        # Those of clients that have left may still be rendering.
        self._renderers = [renderer for renderer in self._renderers if renderer.is_alive()]
        renderer = FrameRenderer.replace(self.viewer, SCALE, client)
        if renderer is not None:
            self._renderers.append(renderer)
        self.viewer.update_step(self.viewer.step)
        self._panel_updated_at = self._plot_updated_at = -np.inf

    def _steps_done(self) -> int:
        trainer = self._trainer
        return 0 if trainer is None or trainer.controller is None else trainer.controller.steps_done

    # ---- cameras ----

    def _selected_poses(self) -> Optional[Float[np.ndarray, "n 4 4"]]:
        """Selected poses in the unit-sphere world, OpenCV axes; None if cameras are hidden."""
        selected, model = self.panel.cameras, self._model
        if selected == "hidden":
            return None
        if selected == "start":
            return self._start_c2w
        if self._snapshot is not None:
            return self._snapshot.c2w
        if selected == "registered":
            return opencv_from_nerfstudio(model.registered_c2w)
        return model.camera_optimizer.c2w_opencv_double()

    def _page_poses(self, c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
        """Poses in the world of the page."""
        c2w = c2w.copy()
        c2w[:, :3, 3] *= SCALE
        return c2w

    def _place_cameras(self) -> None:
        # The page's and the training's threads both place cameras. The selection is read under the lock, or a thread
        # that was overtaken would put some cameras back to the poses of the earlier selection.
        with self._placing:
            c2w = self._selected_poses()
            self.frusta.place(None if c2w is None else self._page_poses(c2w))

    def _plot_residuals(self) -> None:
        c2w = self._snapshot.c2w if self._snapshot is not None else self._model.camera_optimizer.c2w_opencv_double()
        kind = REGISTRATION_RESIDUAL if self._registering else TRAINING_RESIDUAL
        self.panel.show_views(
            self._residuals.read(),
            angles_deg(c2w[:, :3, :3], self._start_c2w[:, :3, :3]),
            REGISTERED_RESIDUAL if self._trainer is None else kind,
        )

    def _clicked(self, client: viser.ClientHandle, view: int) -> None:
        from pmni_nerfstudio.evaluation.picture import object_windows
        from pmni_nerfstudio.geometry.normals import normals_to_rgb
        from pmni_nerfstudio.model.eval_images import error_colors, image_metrics, rendered_normals_image

        name = self._dataset.scene.names[self._dataset.views[view]]
        if not self._can_render:
            self.panel.show_view(name, self._dataset.get_numpy_image(view), "(input normals)")
            return
        camera = self._dataset.cameras[view : view + 1]
        camera.metadata = {"cam_idx": view}
        with self._evaluation_mode():
            outputs = self._model.render_camera(camera)
        batch = self._dataset.get_data(view)
        observed, mask = batch["normal"].to(outputs["normals_camera"]), batch["mask"].to(self._model.device)
        error_deg, metrics = image_metrics(outputs, observed, mask)
        rows, columns = object_windows(mask[None, ..., 0].cpu().numpy())[0]
        parts = (normals_to_rgb(observed, mask), rendered_normals_image(outputs), error_colors(error_deg).to(observed))
        strip = torch.cat([part[rows, columns] for part in parts], dim=1)
        caption = f"input, rendered, error (mean {metrics['normal_mae_deg']:.2f} deg)"
        self.panel.show_view(name, (strip * 255).round().to(torch.uint8).cpu().numpy(), caption)

    # ---- actions ----

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        """Pause training and put the model into evaluation mode."""
        lock, model = self.viewer.train_lock, self._model
        assert lock is not None
        held = lock.requested(WAIT_SECONDS) if isinstance(lock, TrainingLock) else lock
        with held, torch.no_grad():
            was_training = model.training
            model.eval()
            try:
                yield
            finally:
                model.train(was_training)

    def _show_overlay(self) -> None:
        # Frames without depth are drawn behind the mesh, which would otherwise flicker, as both show one surface.
        self.viewer.control_panel._layer_depth.value = not self.panel.overlay
        if self._can_render:  # before training, the mesh of registration is shown
            self._overlay.show(self.panel.overlay)
