# SPDX-License-Identifier: Apache-2.0
"""Our panel on nerfstudio's page: what stage a run is in, how views fit, and what one can ask of it."""

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
RESIDUAL_COLOUR, CHANGE_COLOUR = "#4c9be8", "#e8a54c"


@dataclass(frozen=True)
class Actions:
    """What the panel's elements do; called in threads of the server's."""

    cameras: Callable[[], None]
    """Another set of cameras is to be shown."""
    overlay: Callable[[], None]
    """The mesh is to be shown, or no longer."""
    export: Callable[[], str]
    """Writes the mesh; returns what to say of it."""
    save: Callable[[], str] | None
    """Writes a checkpoint; returns what to say of it. None: there is nothing that trains."""


class Panel:
    """A folder above nerfstudio's own elements.

    Args:
        server: of the page.
        names: of the views.
        sets: of cameras, to choose from.
        actions: of the elements.
    """

    def __init__(
        self, server: viser.ViserServer, names: Sequence[str], sets: Sequence[CameraSet], actions: Actions
    ) -> None:
        self._names = list(names)
        gui = server.gui
        with gui.add_folder("PMNI", order=-1.0):
            self._stage = gui.add_markdown("")
            self._progress = gui.add_progress_bar(0.0)
            self._cameras = gui.add_dropdown("Cameras", list(sets), initial_value=sets[0])
            self._cameras.on_update(lambda _: actions.cameras())
            self._overlay = gui.add_checkbox("Mesh overlay", False)
            self._overlay.on_update(lambda _: actions.overlay())
            self._export = gui.add_button("Export mesh now", disabled=True)
            self._export.on_click(lambda _: self._run(self._export, actions.export))
            self._save = None
            if actions.save is not None:
                save = actions.save
                self._save = button = gui.add_button("Save checkpoint now", disabled=True)
                button.on_click(lambda _: self._run(button, save))
            self._said = gui.add_markdown("")
            self._view = add_markdown(server, "Click a camera to look through it.")
            self._figure = _bars(self._names)
            self._plot = gui.add_plotly(self._figure, aspect=1.3)

    @property
    def cameras(self) -> CameraSet:
        """The set that is to be shown."""
        return self._cameras.value

    @property
    def overlay(self) -> bool:
        """Whether the mesh is to be shown."""
        return self._overlay.value

    def enable(self) -> None:
        """Let the buttons be pressed."""
        for button in (self._export, self._save):
            if button is not None:
                button.disabled = False

    def show_stage(self, text: str, done: float | None) -> None:
        """What runs, in Markdown, and how far it is (0 to 1); None: no bar."""
        self._stage.content = text
        self._progress.visible = done is not None
        if done is not None:
            self._progress.value = 100.0 * min(max(done, 0.0), 1.0)

    def say(self, text: str) -> None:
        """The outcome of what was asked for, in plain words."""
        self._said.content = as_text(text)

    def show_views(self, residual_deg: Float[np.ndarray, " n"], change_deg: Float[np.ndarray, " n"]) -> None:
        """Plot how far each view's normals are from the surface's, and how far each camera has turned since the start.

        Args:
            residual_deg: NaN where unknown.
            change_deg: of the poses' rotations.
        """
        # One figure throughout: making one takes as long as a training step.
        for trace, values in enumerate((residual_deg, change_deg)):
            self._figure.update_traces(selector=trace, y=[float(v) if np.isfinite(v) else None for v in values])
        self._plot.figure = self._figure

    def show_view(self, name: str, pictures: UInt8[np.ndarray, "h w 3"], said: str) -> None:
        """A view's input normals, beside what was rendered of it."""
        self._view.content = f"**{as_text(name)}** {said}\n\n{markdown_picture(name, pictures)}"

    def _run(self, button: viser.GuiButtonHandle, action: Callable[[], str]) -> None:
        button.disabled = True
        try:
            self.say(action())
        finally:
            button.disabled = False


def _bars(names: Sequence[str]) -> Figure:
    """A plot of two values for each view, none of which is known as yet."""
    from plotly.graph_objects import Bar, Figure

    labels = (("normals off", RESIDUAL_COLOUR), ("turned since start", CHANGE_COLOUR))
    figure = Figure([Bar(x=list(names), y=[], name=label, marker_color=colour) for label, colour in labels])
    figure.update_layout(
        margin={"l": 40, "r": 5, "t": 5, "b": 5},
        yaxis_title="deg",
        xaxis={"showticklabels": False, "title": "views"},
        legend={"orientation": "h", "y": 1.15},
        template="plotly_dark",
        bargap=0.2,
    )
    return figure
