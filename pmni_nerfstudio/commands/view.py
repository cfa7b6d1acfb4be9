# SPDX-License-Identifier: Apache-2.0
"""`pmni view`: a result in the browser."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    import viser

DEFAULT_PORT = 7007


@dataclass(kw_only=True)
class ViewCommand:
    """Show the mesh and cameras of a result in the browser, colored by their errors.

    No trained model is needed. Stop with Ctrl-C.
    """

    result: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULT")]
    """Folder that `pmni eval`, `pmni export`, `pmni register` or `pmni sequence` wrote, or a mesh file. A sequence has a
    slider over its frames, and no errors."""
    data: Path | None = None
    """Scene folder with normal maps and given cameras; by default the one that the result refers to, if it exists."""
    normals_folder: str | None = None
    """Name of the scene's folder with the normal maps, if it has several."""
    poses: Path | None = None
    """Poses of the mesh (.npy or .npz); by default those beside the mesh."""
    truth: Path | None = None
    """Ground-truth folder; by default the ground truth within the scene's folder."""
    align: bool = True
    """Align the result to the ground truth by a similarity before measuring errors, unless its poses are the given ones."""
    units: str = "units"
    """Name of the data's units, for display; results of `pmni eval` have their own."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 also accepts connections from other machines."""
    port: int | None = None
    """Port to listen on; by default 7007, or a free port if that is in use."""

    def main(self) -> None:
        """Read the result and serve the page until interrupted.

        Raises:
            PmniError: A file is missing or invalid, or the port can't be used.
        """
        # Fail on an unusable port before anything is read.
        port = self._port()
        from pmni_nerfstudio.evaluation.stored_sequence import SEQUENCE_FILE, read_sequence

        if (self.result / SEQUENCE_FILE).is_file():
            from pmni_nerfstudio.viewer.sequence_page import SequencePage

            sequence = read_sequence(self.result)
            self._serve(port, lambda server: SequencePage(server, sequence, self.result.resolve().name))
            return
        from pmni_nerfstudio.evaluation.displayed_result import read_displayed_result
        from pmni_nerfstudio.viewer.view import ResultPage

        displayed = read_displayed_result(
            self.result,
            data=self.data,
            normals_folder=self.normals_folder,
            poses=self.poses,
            truth=self.truth,
            align=self.align,
            units=self.units,
        )
        shown, faces = displayed.shown_mesh.faces, displayed.mesh.faces
        if len(shown) < len(faces):
            print(f"The mesh is simplified from {len(faces):,} to {len(shown):,} faces for display.")
        self._serve(port, lambda server: ResultPage(server, displayed))

    def _serve(self, port: int, make_page: Callable[[viser.ViserServer], object]) -> None:
        """Serve a page until Ctrl-C."""
        import viser

        server = viser.ViserServer(host=self.host, port=port, verbose=False)
        try:
            make_page(server)
            print(f"Viewer: http://localhost:{server.get_port()} (stop with Ctrl-C)", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            server.stop()

    def _port(self) -> int:
        for port in [self.port] if self.port is not None else [DEFAULT_PORT, 0]:
            with socket.socket() as probe:
                if os.name == "posix":  # as servers do: recently closed connections don't block the port
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except (OSError, OverflowError) as error:
                    if port == DEFAULT_PORT and self.port is None:
                        continue
                    raise PmniError(
                        f"port: can't listen on {self.host}:{port} ({error}); give another --port"
                    ) from error
                return int(probe.getsockname()[1])
        raise PmniError("port: no free port found; give one with --port")
