# SPDX-License-Identifier: Apache-2.0
"""Mesh of the surface on a page, and a thread that updates it during training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
import viser
from jaxtyping import Float, Int
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.marching_cubes import extract_mesh

CELLS = 96
"""Number of marching cubes cells along the diameter; about 30,000 triangles, which a page loads at once."""
SECONDS = 2.0
"""Minimum time between two updates of the mesh, in seconds."""
COLOR = (190, 196, 210)
SURFACE = "/surface"
"""Name of the only mesh in a page's scene tree."""


def show_mesh(
    server: viser.ViserServer,
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    wireframe: bool = False,
) -> viser.MeshHandle:
    """Show the surface as a mesh of one color, which replaces the previous mesh."""
    vertices, faces = vertices.astype(np.float32), faces.astype(np.uint32)
    return server.scene.add_mesh_simple(SURFACE, vertices, faces, color=COLOR, wireframe=wireframe, side="double")


class Overlay:
    """Mesh of the field that is extracted again in a thread whenever the field has changed.

    Args:
        server: server of the page.
        sdf: signed distance of the field, in the unit-sphere world.
        device: device of the field.
        lock: lock to hold while the field is evaluated.
        version: returns a number that changes whenever the field does.
        scale: scale factor from the unit-sphere world to the page's world.
    """

    def __init__(
        self,
        server: viser.ViserServer,
        sdf: Callable[[Tensor], Tensor],
        device: torch.device,
        lock: AbstractContextManager,
        version: Callable[[], int],
        scale: float,
    ) -> None:
        self._server, self._sdf, self._device, self._lock = server, sdf, device, lock
        self._version, self._scale = version, scale
        self._enabled, self._shown_version = threading.Event(), -1
        self._handle: viser.MeshHandle | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mesh overlay", daemon=True)
        self._thread.start()

    def show(self, enabled: bool) -> None:
        """Turn the overlay on or off."""
        if enabled:
            self._shown_version = -1
            self._enabled.set()
        else:
            self._enabled.clear()
            self._remove()

    def close(self) -> None:
        """Stop the thread after the mesh in progress."""
        self._closed.set()
        self._enabled.set()
        self._thread.join()

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _run(self) -> None:
        while self._enabled.wait() and not self._closed.is_set():
            version = self._version()
            if version != self._shown_version and self._server.get_clients():
                try:
                    with self._lock, torch.no_grad():
                        mesh = extract_mesh(self._sdf, CELLS, device=self._device, progress=False)
                except PmniError as error:  # there is no surface yet
                    CONSOLE.log(f"Mesh overlay: {error}")
                else:
                    if self._enabled.is_set():
                        self._handle = show_mesh(self._server, self._scale * np.asarray(mesh.vertices), mesh.faces)
                self._shown_version = version
            self._closed.wait(SECONDS)
