# SPDX-License-Identifier: Apache-2.0
"""What our methods add to nerfstudio's viewer: registration as it goes, cameras where they are, a panel, steady frames.

nerfstudio's viewer looks in a pipeline for `ViewerControl`s and hands itself to each: this is one. So it is there in
`ns-train` and in `ns-viewer` alike. The page's world is the unit-sphere world times nerfstudio's scale for pages.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.geometry.transforms import opencv_from_nerfstudio
from pmni_nerfstudio.registration.pipeline import Snapshot
from pmni_nerfstudio.training.lock import TrainingLock
from pmni_nerfstudio.viewer.frusta import Frusta
from pmni_nerfstudio.viewer.home import Home, home_of_cameras
from pmni_nerfstudio.viewer.overlay import Overlay, show_mesh
from pmni_nerfstudio.viewer.panel import Actions, CameraSet, Panel
from pmni_nerfstudio.viewer.residuals import ViewResiduals

if TYPE_CHECKING:
    from pmni_nerfstudio.model.pmni_model import PmniModel
    from pmni_nerfstudio.training.trainer import PmniTrainer

PANEL_SECONDS, PLOT_SECONDS = 1.0, 4.0
"""Between two updates of the page's text and cameras, and of its plot."""
NOTE_EVERY = 5
"""Steps, of whose batches one is looked at for the views' residuals."""
CPU_FRAME_PX = 256
"""Longer side of a full frame beside a training without a GPU; the page's "Max Res" changes it."""
MOVING_FPS = 10
"""That frames are made small enough for while the camera moves."""
EXPORT_CELLS = 512


class Live(ViewerControl):
    """See above. A watcher of registrations, too."""

    viewer: Viewer
    attached = False
    """Whether there is a page."""

    def _setup(self, viewer: Viewer) -> None:
        """Called by nerfstudio's viewer at the end of its construction."""
        super()._setup(viewer)
        server, pipeline = viewer.viser_server, viewer.pipeline
        self._model = model = cast("PmniModel", pipeline.model)
        dataset = pipeline.datamanager.train_dataset
        assert isinstance(dataset, PmniDataset)
        self._dataset = dataset
        names = [dataset.scene.names[i] for i in dataset.views]
        # Nothing of the page is fetched from elsewhere, as nerfstudio's title and links would be.
        server.gui.configure_theme(control_layout="collapsible", dark_mode=True, brand_color=(76, 155, 232))
        # Cameras are ours, as they stand: nerfstudio's would stay at the dataset's poses in ns-viewer.
        viewer.config = dataclasses.replace(viewer.config, max_num_display_images=0)
        viewer.hide_images.visible = viewer.show_images.visible = False
        trainer = self._trainer
        if model.device.type == "cpu" and trainer is not None:
            viewer.control_panel._max_res.value = CPU_FRAME_PX
        self._start = opencv_from_nerfstudio(model.camera_optimizer.base_c2w)
        self._snapshot: Optional[Snapshot] = None
        self._residuals = ViewResiduals(model, len(names))
        self._step, self._panel_at, self._plot_at = 0, -np.inf, -np.inf
        images = [dataset.get_numpy_image(i) for i in range(len(names))]
        K, start = dataset.scene.K[list(dataset.views)], self._page_poses(self._start)
        self.frusta = Frusta(server, names, K, images, SCALE, start, self._clicked)
        sets: List[CameraSet] = ["refined", "registered", "start", "hidden"]
        if not model.camera_optimizer.enabled:
            sets = ["refined", "hidden"]
        elif not model.uses_registration:
            sets.remove("registered")
        actions = Actions(self._place, self._show_overlay, self._export, None if trainer is None else self._save)
        self.panel = Panel(server, names, sets, actions)
        lock = viewer.train_lock
        assert lock is not None
        self._overlay = Overlay(server, model.field.sdf, model.device, lock, lambda: self._step, SCALE)
        self._mesh: Optional[viser.MeshHandle] = None
        Home(server, SCALE, *home_of_cameras(start))
        server.on_client_connect(self._connected)
        self.attached = True
        if trainer is None:
            self.panel.show_stage("A trained run", None)
            self.panel.enable()
            self._place()
        else:
            self.panel.show_stage("Setting up", 0.0)
            CONSOLE.print(f"[bold green]{viewer.viewer_info[0]}", highlight=False, soft_wrap=True)

    @property
    def _trainer(self) -> Optional[PmniTrainer]:
        return cast("Optional[PmniTrainer]", self.viewer.trainer)

    @property
    def _renders(self) -> bool:
        """Whether the field is there to be asked: while a run is set up it isn't."""
        lock = self.viewer.train_lock
        return not isinstance(lock, TrainingLock) or lock.is_open

    # ---- registration ----

    def progress(self, stage: str, done: float, residual: float) -> None:
        """How far a registration is."""
        self.panel.show_stage(f"**Registration**: {stage}", done)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Poses and surface of a registration."""
        self._snapshot = snapshot
        if snapshot.residual_deg is not None:
            self._residuals.set(snapshot.residual_deg)
        if snapshot.mesh is not None:
            vertices, faces = snapshot.mesh
            self._mesh = show_mesh(self.viser_server, SCALE * vertices, faces)
        self._place()
        self._plot()

    # ---- training ----

    def begin(self) -> None:
        """Training starts: frames take the place of the registration's mesh."""
        self._snapshot = None
        if self._mesh is not None:
            self._mesh.remove()
            self._mesh = None
        self.panel.enable()
        self._show_overlay()
        self._place()

    def finish(self) -> None:
        """Training has ended."""
        self._step += 1
        self._place()
        self._plot()
        self.panel.show_stage(f"**Done** after {self._model_steps()} steps", None)

    def close(self) -> None:
        """The page ends, and its threads: one that is in the midst of a frame when Python ends takes it down with it."""
        machines = list(self.viewer.render_statemachines.values())
        for machine in machines:
            machine.running = False
        for machine in machines:
            machine.join()
        self._overlay.close()
        self.viser_server.stop()

    def update(self, step: int) -> None:
        """After each step; without a page open it does nothing."""
        viewer = self.viewer
        viewer.step = self._step = step
        if not viewer.render_statemachines:
            return
        lock, now = viewer.train_lock, time.perf_counter()
        if not isinstance(lock, TrainingLock) or lock.has_credit():
            self._ask_for_frames()
        if now - self._panel_at < PANEL_SECONDS:
            return
        self._panel_at = now
        trainer = self._trainer
        assert trainer is not None and trainer.controller is not None
        run = trainer.controller
        self.panel.show_stage(
            f"**Training**: step {step + 1}, schedule of {run.schedule_steps}, at most {run.max_steps}",
            (step + 1) / max(run.schedule_steps, 1),
        )
        viewer.update_step(step)
        self._place()
        if now - self._plot_at >= PLOT_SECONDS:
            self._plot_at = now
            self._plot()

    def note(self, outputs: Dict[str, Any], batch: Dict[str, torch.Tensor]) -> None:
        """Of some of the training's batches, how far each view's normals are off; nothing, without a page open."""
        if self.attached and self.viewer.render_statemachines and self._step % NOTE_EVERY == 0:
            self._residuals.note(outputs, batch)

    def _ask_for_frames(self) -> None:
        viewer = self.viewer
        for key, client in viewer.viser_server.get_clients().items():
            machine = viewer.render_statemachines.get(key)
            if machine is not None:
                machine.action(RenderAction("step", viewer.get_camera_state(client)))

    def _connected(self, client: viser.ClientHandle) -> None:
        machine = self.viewer.render_statemachines.get(client.client_id)
        if machine is not None:
            machine.target_fps = MOVING_FPS
        self._panel_at = self._plot_at = -np.inf

    def _model_steps(self) -> int:
        trainer = self._trainer
        return 0 if trainer is None or trainer.controller is None else trainer.controller.steps_done

    # ---- cameras ----

    def _poses(self) -> Optional[Float[np.ndarray, "n 4 4"]]:
        """Of the set that is to be shown, unit-sphere world, OpenCV axes."""
        shown, model = self.panel.cameras, self._model
        if shown == "hidden":
            return None
        if shown == "start":
            return self._start
        if self._snapshot is not None:
            return self._snapshot.c2w
        if shown == "registered":
            return opencv_from_nerfstudio(model.registered_c2w)
        return model.camera_optimizer.c2w_opencv_double()

    def _page_poses(self, c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
        scaled = c2w.copy()
        scaled[:, :3, 3] *= SCALE
        return scaled

    def _place(self) -> None:
        poses = self._poses()
        self.frusta.place(None if poses is None else self._page_poses(poses))

    def _plot(self) -> None:
        now = self._snapshot.c2w if self._snapshot is not None else self._model.camera_optimizer.c2w_opencv_double()
        self.panel.show_views(self._residuals.look(), angles_deg(now[:, :3, :3], self._start[:, :3, :3]))

    def _clicked(self, client: viser.ClientHandle, view: int) -> None:
        from pmni_nerfstudio.evaluation.picture import object_windows
        from pmni_nerfstudio.geometry.normals import normals_to_rgb
        from pmni_nerfstudio.model.eval_images import error_colors, image_metrics, rendered_normals_image

        name = self._dataset.scene.names[self._dataset.views[view]]
        if not self._renders:
            self.panel.show_view(name, self._dataset.get_numpy_image(view), "(input normals)")
            return
        camera = self._dataset.cameras[view : view + 1]
        camera.metadata = {"cam_idx": view}
        with self._asking():
            outputs = self._model.render_camera(camera)
        batch = self._dataset.get_data(view)
        observed, mask = batch["normal"].to(outputs["normals_camera"]), batch["mask"].to(self._model.device)
        error_deg, metrics = image_metrics(outputs, observed, mask)
        rows, columns = object_windows(mask[None, ..., 0].cpu().numpy())[0]
        parts = (normals_to_rgb(observed, mask), rendered_normals_image(outputs), error_colors(error_deg).to(observed))
        strip = torch.cat([part[rows, columns] for part in parts], dim=1)
        said = f"input, rendered, error (mean {metrics['normal_mae_deg']:.2f} deg)"
        self.panel.show_view(name, (strip * 255).round().to(torch.uint8).cpu().numpy(), said)

    # ---- what is asked for ----

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The model in evaluation mode, while training waits."""
        lock, model = self.viewer.train_lock, self._model
        assert lock is not None
        with lock, torch.no_grad():
            trains = model.training
            model.eval()
            try:
                yield
            finally:
                model.train(trains)

    def _show_overlay(self) -> None:
        # The page cannot tell which of two surfaces in one place is in front: the mesh then is.
        self.viewer.control_panel._layer_depth.value = not self.panel.overlay
        if self._renders:  # before, the registration's own mesh is there
            self._overlay.show(self.panel.overlay)

    def _export(self) -> str:
        from pmni_nerfstudio.data.result_files import write_mesh
        from pmni_nerfstudio.geometry.mesh import transformed_mesh

        model = self._model
        try:
            with self._asking():
                step = self._step
                mesh = extract_mesh(model.field.sdf, EXPORT_CELLS, device=model.device, progress=False)
            path = self._folder / f"mesh-{step:06d}.ply"
            write_mesh(path, transformed_mesh(mesh, self._dataset.scene.world_from_unit))
        except PmniError as error:
            return f"Not exported: {error}"
        CONSOLE.log(f"Wrote {path}")
        return f"Wrote {path.name} to the run's folder: {len(mesh.faces):,} faces, in the data's units"

    def _save(self) -> str:
        trainer = self._trainer
        assert trainer is not None and trainer.train_lock is not None
        with trainer.train_lock:
            steps = self._model_steps()
            if steps == 0:
                return "Not saved: no step is done yet"
            try:
                trainer.save_checkpoint(steps - 1)
            except PmniError as error:
                return f"Not saved: {error}"
        CONSOLE.log(f"Saved the checkpoint of step {steps - 1} in {trainer.checkpoint_dir}")
        return f"Saved the checkpoint of step {steps - 1}"

    @property
    def _folder(self) -> Path:
        return self.viewer.log_filename.parent
