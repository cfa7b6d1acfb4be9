# SPDX-License-Identifier: Apache-2.0
"""Panel of this package on nerfstudio's viewer page: stage and progress of a run, residuals of the views, actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import viser
from jaxtyping import Float, UInt8

from pmni_nerfstudio.viewer.markdown import add_markdown, as_text, markdown_picture

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CameraSet = Literal["refined", "registered", "start", "hidden"]
NO_EXPORT = (
    "This page can be opened from other machines, so that it has no button that writes files. Start it with "
    "`--viewer.websocket-host 127.0.0.1` to have one."
)
"""Text in place of the export button."""
RESIDUAL_COLOR, ROTATION_COLOR = "#4c9be8", "#e8a54c"


@dataclass(frozen=True)
class Controls:
    """Callbacks of the panel's controls; the server calls them in threads of its own."""

    cameras: Callable[[], None]
    """Show the selected set of cameras."""
    overlay: Callable[[], None]
    """Show or hide the mesh overlay."""
    export: Callable[[], str] | None
    """Write the mesh, and return a message about it; None if this page may write no files."""
    save: Callable[[], str] | None
    """Write a checkpoint, and return a message about it; None if no training is running."""


class Panel:
    """Folder of controls above those of nerfstudio.

    Args:
        server: server of the page.
        names: names of the views.
        camera_sets: sets of cameras to choose from.
        controls: callbacks of the controls.
    """

    def __init__(
        self, server: viser.ViserServer, names: Sequence[str], camera_sets: Sequence[CameraSet], controls: Controls
    ) -> None:
        gui = server.gui
        with gui.add_folder("PMNI", order=-1.0):
            self._stage = gui.add_markdown("")
            self._progress = gui.add_progress_bar(0.0)
            self._verdict = gui.add_markdown("")
            self._cameras = gui.add_dropdown("Cameras", list(camera_sets), initial_value=camera_sets[0])
            self._cameras.on_update(lambda _: controls.cameras())
            self._overlay = gui.add_checkbox("Mesh overlay", False)
            self._overlay.on_update(lambda _: controls.overlay())
            self._buttons: list[viser.GuiButtonHandle] = []
            if controls.export is not None:
                self._buttons.append(self._add_button(gui, "Export mesh now", controls.export))
            if controls.save is not None:
                self._buttons.append(self._add_button(gui, "Save checkpoint now", controls.save))
            self._message = gui.add_markdown("" if controls.export is not None else NO_EXPORT)
            self._legend = add_markdown(server, "")
            self._view = add_markdown(server, "Click a camera to look through it.")
            self._figure = _bar_chart(names)
            self._plot = gui.add_plotly(self._figure, aspect=1.3, visible=False)
            self._plot_note = gui.add_markdown("")

    def _add_button(self, gui: viser.GuiApi, label: str, action: Callable[[], str]) -> viser.GuiButtonHandle:
        """Add a button, still disabled, that is disabled while its action waits and runs, and then shows its message."""
        button = gui.add_button(label, disabled=True)

        def run() -> None:
            button.disabled = True
            self._message.content = as_text(f"{label}: waiting for its turn or at work...")
            try:
                self._message.content = as_text(action())
            finally:
                button.disabled = False

        button.on_click(lambda _: run())
        return button

    @property
    def cameras(self) -> CameraSet:
        """Selected set of cameras."""
        return self._cameras.value

    @property
    def overlay(self) -> bool:
        """Whether the mesh overlay is selected."""
        return self._overlay.value

    def enable(self) -> None:
        """Enable the buttons."""
        for button in self._buttons:
            button.disabled = False

    def show_stage(self, text: str, done: float | None) -> None:
        """Show the current stage and its progress.

        Args:
            text: the stage, in Markdown.
            done: fraction done, from 0 to 1; None hides the progress bar.
        """
        self._stage.content = text
        self._progress.visible = done is not None
        if done is not None:
            self._progress.value = 100.0 * min(max(done, 0.0), 1.0)

    def show_verdict(self, verdict: str, reasons: Sequence[str]) -> None:
        """Show the verdict of the registration, and its reasons."""
        self._verdict.content = "\n".join([f"Registration: **{verdict}**\n", *(f"- {as_text(r)}" for r in reasons)])

    def show_end(self, lines: Sequence[str]) -> None:
        """Show that the run has ended, with lines about its result."""
        self.show_stage("\n\n".join(["**Training has ended.**", *(as_text(line) for line in lines)]), None)

    def show_legend(self, output: str, text: str, bar: UInt8[np.ndarray, "h w 3"] | None) -> None:
        """Explain the colors of the selected output, with its color scale if it has one."""
        parts = [f"**{as_text(output)}**", *([] if bar is None else [markdown_picture("scale", bar)]), as_text(text)]
        self._legend.content = "\n\n".join(parts) if text else ""

    def show_views(
        self, residual_deg: Float[np.ndarray, " n"], rotation_deg: Float[np.ndarray, " n"], residual: str
    ) -> None:
        """Plot the residual of each view's normals, and the rotation of each camera from its initial pose.

        Args:
            residual_deg: angle to the surface's normals, in degrees; NaN where unknown.
            rotation_deg: rotation angle in degrees.
            residual: what the residual is.
        """
        self._plot.visible = bool(np.isfinite(residual_deg).any())
        self._plot_note.content = residual if self._plot.visible else ""
        # The figure is reused, because creating one takes as long as a training step.
        for trace, values in enumerate((residual_deg, rotation_deg)):
            self._figure.update_traces(selector=trace, y=[float(v) if np.isfinite(v) else None for v in values])
        self._plot.figure = self._figure

    def show_view(self, name: str, images: UInt8[np.ndarray, "h w 3"], caption: str) -> None:
        """Show images of a view, with a caption."""
        self._view.content = f"**{as_text(name)}** {caption}\n\n{markdown_picture(name, images)}"


def _bar_chart(names: Sequence[str]) -> Figure:
    """Bar chart of two values per view, still without values."""
    from plotly.graph_objects import Bar, Figure

    traces = (("normal residual", RESIDUAL_COLOR), ("rotation from start", ROTATION_COLOR))
    figure = Figure([Bar(x=list(names), y=[], name=label, marker_color=color) for label, color in traces])
    figure.update_layout(
        margin={"l": 40, "r": 5, "t": 5, "b": 5},
        yaxis_title="deg",
        xaxis={"type": "category", "tickangle": -90, "tickfont": {"size": 9}, "automargin": True},
        legend={"orientation": "h", "y": 1.15},
        template="plotly_dark",
        bargap=0.2,
    )
    return figure
