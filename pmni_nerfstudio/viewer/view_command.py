# SPDX-License-Identifier: Apache-2.0
"""`pmni view OUT_OR_MESH`: a result in the browser."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from pmni_nerfstudio.viewer.view import Subject

DEFAULT_PORT = 7007
_POSES_FILES = ("poses.npy", "cameras_sphere.npz")


@dataclass(kw_only=True)
class ViewCommand:
    """Show a result in the browser, without a trained model: mesh, cameras, and errors as colours. Ctrl-C ends it."""

    result: tyro.conf.Positional[Path]
    """A folder that pmni eval, export or register wrote, or the file of a mesh."""
    data: Path | None = None
    """The scene, for normal maps and given cameras; what pmni eval wrote names its own."""
    poses: Path | None = None
    """Cameras of the mesh, .npy or .npz; by default those that lie beside it."""
    truth: Path | None = None
    """Folder of the truth; by default what the scene's folder knows of it."""
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
        subject = self._subject()
        import viser

        from pmni_nerfstudio.viewer.view import MOST_FACES, ResultPage

        server = viser.ViserServer(host=self.host, port=port, verbose=False)
        ResultPage(server, subject)
        if len(subject.mesh.faces) > MOST_FACES:
            print(f"The page shows {len(subject.shown.faces):,} of the mesh's {len(subject.mesh.faces):,} faces.")
        print(f"Viewer: http://localhost:{server.get_port()} (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            server.stop()

    def _port(self) -> int:
        for port in [self.port] if self.port is not None else [DEFAULT_PORT, 0]:
            with socket.socket() as tried:
                try:
                    tried.bind((self.host, port))
                except (OSError, OverflowError) as error:
                    if port == DEFAULT_PORT and self.port is None:
                        continue
                    raise PmniError(f"port: {self.host}:{port} can't be listened on ({error}): give another") from error
                return int(tried.getsockname()[1])
        raise PmniError("port: none is free")

    def _subject(self) -> Subject:
        if self.result.is_dir() and (self.result / "metrics.json").is_file() and self.data is None:
            return self._measured()
        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.evaluation.metrics import transform_poses
        from pmni_nerfstudio.evaluation.truth import find_truth, read_mesh, read_poses, read_truth
        from pmni_nerfstudio.viewer.view import Subject

        path = self.result
        if path.is_dir():
            meshes = [path / f"mesh.{suffix}" for suffix in ("ply", "obj", "stl", "glb")]
            found = next((mesh for mesh in meshes if mesh.is_file()), None)
            if found is None:
                raise PmniError(
                    f"{path}: holds no mesh: give a folder that pmni eval or export wrote, or a mesh's file"
                )
            path = found
        mesh = read_mesh(path)
        scene = None if self.data is None else read_scene(self.data)
        if self.poses is not None and scene is None:
            raise PmniError(f"{self.poses}: cameras of which views? Give --data DIR too")
        cameras = {}
        if scene is not None:
            beside = [path.parent / name for name in _POSES_FILES]
            poses = self.poses or next((file for file in beside if file.is_file()), None)
            if poses is not None:
                cameras["refined"] = read_poses(poses, scene.num_views)
            if scene.c2w is not None:
                cameras["given"] = transform_poses(scene.world_from_unit, scene.c2w)
        truth = read_truth(self.truth) if self.truth is not None else None if scene is None else find_truth(scene)
        true_mesh = None if truth is None else truth.world_mesh
        return Subject(title=path.name, mesh=mesh, scene=scene, cameras=cameras, truth=true_mesh)

    def _measured(self) -> Subject:
        """What `pmni eval` wrote."""
        import numpy as np

        from pmni_nerfstudio.evaluation.truth import find_truth, read_truth
        from pmni_nerfstudio.report.outcome import read_outcome
        from pmni_nerfstudio.viewer.view import Subject

        outcome = read_outcome(self.result)
        record, mesh = outcome.record, outcome.mesh
        if mesh is None:
            raise PmniError(f"{self.result}: holds no mesh.ply: measure again with pmni eval --output-dir")
        cameras = {"refined": outcome.c2w, "given": outcome.given_c2w}
        truth = None
        if self.truth is not None:
            truth = read_truth(self.truth)
        elif outcome.scene is not None and record["surface"] is not None:
            truth = find_truth(outcome.scene)
        lines = []
        if record["surface"] is not None:
            surface = record["surface"]
            lines.append(f"Chamfer {surface['chamfer']:.4g} {record['units']} ({surface['chamfer_pct']:.3g}%)")
        if record["poses"] is not None:
            lines.append(f"rotation {record['poses']['rot_deg']:.3g} deg")
        if record["normals"] is not None and record["normals"]["mae_deg"] is not None:
            lines.append(f"normals {record['normals']['mae_deg']:.3g} deg")
        return Subject(
            title=outcome.title,
            mesh=mesh,
            scene=outcome.scene,
            cameras={name: c2w for name, c2w in cameras.items() if c2w is not None},
            truth=None if truth is None else truth.world_mesh,
            truth_from_data=np.eye(4) if record["similarity"] is None else np.array(record["similarity"]),
            figures=", ".join(lines),
            units=record["units"],
        )
