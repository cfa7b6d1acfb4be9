# SPDX-License-Identifier: Apache-2.0
"""`pmni view OUT_OR_MESH`: a result in the browser."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import tyro

from pmni_nerfstudio.errors import PmniError

DEFAULT_PORT = 7007


@dataclass(kw_only=True)
class ViewCommand:
    """Show a result in the browser, without a trained model: mesh, cameras, and errors as colours. Ctrl-C ends it."""

    result: tyro.conf.Positional[Path]
    """A folder that pmni eval, export or register wrote, or the file of a mesh."""
    data: Path | None = None
    """The scene, for normal maps and given cameras; by default the one that the folder names, if it still is there."""
    normals_folder: str | None = None
    """Name of the scene's folder with the normal maps, where it has several."""
    poses: Path | None = None
    """Cameras of the mesh, .npy or .npz; by default those that lie beside it."""
    truth: Path | None = None
    """Folder of the truth; by default what the scene's folder knows of it."""
    align: bool = True
    """Lay the result onto the truth by a similarity before it is measured, unless its cameras are the given ones."""
    units: str = "units"
    """Name of the data's units; what pmni eval wrote has its own."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: for other machines too."""
    port: int | None = None
    """To listen on; by default 7007, or a free one where that is taken."""

    def main(self) -> None:
        """Read, open the page, and stay.

        Raises:
            PmniError: a file is missing or broken, or the port is taken.
        """
        # before anything is read that would have nowhere to go
        port = self._port()
        import viser

        from pmni_nerfstudio.viewer.reading import read_subject
        from pmni_nerfstudio.viewer.view import ResultPage

        subject = read_subject(
            self.result,
            data=self.data,
            normals_folder=self.normals_folder,
            poses=self.poses,
            truth=self.truth,
            align=self.align,
            units=self.units,
        )
        server = viser.ViserServer(host=self.host, port=port, verbose=False)
        try:
            ResultPage(server, subject)
            if len(subject.shown.faces) < len(subject.mesh.faces):
                print(f"The page shows {len(subject.shown.faces):,} of the mesh's {len(subject.mesh.faces):,} faces.")
            print(f"Viewer: http://localhost:{server.get_port()} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            server.stop()

    def _port(self) -> int:
        for port in [self.port] if self.port is not None else [DEFAULT_PORT, 0]:
            with socket.socket() as tried:
                if os.name == "posix":  # as servers do: connections of one that has just ended don't keep its port
                    tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    tried.bind((self.host, port))
                except (OSError, OverflowError) as error:
                    if port == DEFAULT_PORT and self.port is None:
                        continue
                    raise PmniError(f"port: {self.host}:{port} can't be listened on ({error}): give another") from error
                return int(tried.getsockname()[1])
        raise PmniError("port: none is free")
