# SPDX-License-Identifier: Apache-2.0
"""The surface as a mesh on the page, made anew in the background as training goes."""

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
"""Along the diameter: some 30,000 triangles, which a page takes in a moment."""
SECONDS = 2.0
"""Between two meshes, at least."""
COLOUR = (190, 196, 210)
SURFACE = "/surface"
"""Name of the mesh on a page: there is one at a time."""


def show_mesh(
    server: viser.ViserServer,
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    wireframe: bool = False,
) -> viser.MeshHandle:
    """Put the mesh of the surface on the page, in one colour, in the place of the last one."""
    vertices, faces = vertices.astype(np.float32), faces.astype(np.uint32)
    return server.scene.add_mesh_simple(SURFACE, vertices, faces, color=COLOUR, wireframe=wireframe, side="double")


class Overlay:
    """While it is on, a mesh of the field follows it.

    Args:
        server: of the page.
        sdf: the field, in the unit-sphere world.
        device: of the field.
        lock: held while the field is asked.
        version: changes where the field has.
        scale: from the unit-sphere world to the page's.
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
        self._wanted, self._shown = threading.Event(), -1
        self._handle: viser.MeshHandle | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mesh overlay", daemon=True)
        self._thread.start()

    def show(self, wanted: bool) -> None:
        """On or off."""
        if wanted:
            self._shown = -1
            self._wanted.set()
        else:
            self._wanted.clear()
            self._remove()

    def close(self) -> None:
        """End the thread, once the mesh that it may be making is made."""
        self._closed.set()
        self._wanted.set()
        self._thread.join()

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _follow(self) -> None:
        while self._wanted.wait() and not self._closed.is_set():
            version = self._version()
            if version != self._shown and self._server.get_clients():
                try:
                    with self._lock, torch.no_grad():
                        mesh = extract_mesh(self._sdf, CELLS, device=self._device, progress=False)
                except PmniError as error:  # no surface, as yet: the next version may have one
                    CONSOLE.log(f"Mesh overlay: {error}")
                else:
                    if self._wanted.is_set():
                        self._handle = show_mesh(self._server, self._scale * np.asarray(mesh.vertices), mesh.faces)
                self._shown = version
            self._closed.wait(SECONDS)
