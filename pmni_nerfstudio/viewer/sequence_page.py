# SPDX-License-Identifier: Apache-2.0
"""Page of `pmni view` for a sequence: the mesh of one frame, chosen by a slider."""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np
import trimesh
import viser

from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.evaluation.displayed_result import MAX_FACES
from pmni_nerfstudio.evaluation.metrics import object_radius
from pmni_nerfstudio.evaluation.stored_sequence import StoredSequence
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.viewer.home import Home, home_from_cameras
from pmni_nerfstudio.viewer.markdown import as_text
from pmni_nerfstudio.viewer.overlay import show_mesh
from pmni_nerfstudio.viewer.view import RADIUS

_KEPT = 64
"""Largest number of meshes in memory."""


class SequencePage:
    """Page with a slider over the frames; meshes are read when they are shown first.

    Args:
        server: server of the page.
        sequence: result to display.
        title: title of the page.

    Raises:
        PmniError: the first mesh cannot be read.
    """

    def __init__(self, server: viser.ViserServer, sequence: StoredSequence, title: str) -> None:
        self.server, self.sequence = server, sequence
        self._draw_lock = threading.Lock()
        self._mesh = lru_cache(_KEPT)(self._read)
        first = self._mesh(0)
        self._center, self._radius = first.bounds.mean(axis=0), object_radius(first)
        server.gui.configure_theme(dark_mode=True, brand_color=(76, 155, 232))
        server.gui.add_markdown(f"**{as_text(title)}**")
        last = len(sequence.frames) - 1
        self.slider = server.gui.add_slider("Frame", min=0, max=max(last, 1), step=1, initial_value=0)
        self.slider.on_update(lambda _: self.draw())
        self.label = server.gui.add_markdown("")
        c2w = sequence.c2w.copy()
        c2w[:, :3, 3] = (c2w[:, :3, 3] - self._center) * (RADIUS / self._radius)
        Home(server, RADIUS, *home_from_cameras(c2w))
        self.draw()

    def _read(self, index: int) -> trimesh.Trimesh:
        return simplify(read_mesh(self.sequence.frames[index].mesh), MAX_FACES)

    def draw(self) -> None:
        """Draw the mesh of the chosen frame. All frames have the scale and place of the first."""
        with self._draw_lock:  # every change of the page runs in its own thread
            index = min(int(self.slider.value), len(self.sequence.frames) - 1)
            frame, mesh = self.sequence.frames[index], self._mesh(index)
            vertices = (mesh.vertices - self._center) * (RADIUS / self._radius)
            show_mesh(self.server, np.asarray(vertices), np.asarray(mesh.faces))
            self.label.content = f"Frame {as_text(frame.name)}: {as_text(frame.verdict)}"
