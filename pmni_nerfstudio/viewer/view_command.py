# SPDX-License-Identifier: Apache-2.0
"""`pmni view OUT_OR_MESH`: a result in the browser."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from pmni_nerfstudio.errors import PmniError, one_line

if TYPE_CHECKING:
    from pmni_nerfstudio.data.scene import Scene
    from pmni_nerfstudio.viewer.view import Subject

DEFAULT_PORT = 7007
PORTS_TRIED = 20
HERE = ("127.0.0.1", "0.0.0.0", "localhost")
"""Hosts that a browser on this machine reaches by the name localhost."""
_MESHES = ("mesh.ply", "surface.ply", "mesh.obj", "mesh.stl", "mesh.glb")
"""Of pmni eval and export, of pmni register, and of export's other formats."""


@dataclass(kw_only=True)
class ViewCommand:
    """Show a result in the browser, without a trained model: mesh, cameras, and errors as colours. Ctrl-C ends it."""

    result: tyro.conf.Positional[Path]
    """A folder that pmni eval, export or register wrote, or the file of a mesh."""
    data: Path | None = None
    """The scene, for normal maps and given cameras; what pmni wrote names its own."""
    poses: Path | None = None
    """Cameras of the mesh, .npy or .npz; by default poses.npy beside it."""
    truth: Path | None = None
    """Folder of the truth; by default what the scene's folder knows of it."""
    align: bool = True
    """Lay the mesh onto the truth by a similarity before it is measured; what pmni eval wrote has its own."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: for other machines too."""
    port: int | None = None
    """To listen on; by default 7007, or the next one that is free."""

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

        with contextlib.redirect_stdout(io.StringIO()):  # a table of addresses, whatever `verbose` says
            server = viser.ViserServer(host=self.host, port=port, verbose=False)
        try:
            ResultPage(server, subject)
            if len(subject.mesh.faces) > MOST_FACES:
                print(f"The page shows {len(subject.shown.faces):,} of the mesh's {len(subject.mesh.faces):,} faces.")
            taken = f"; {DEFAULT_PORT} is taken" if self.port is None and port != DEFAULT_PORT else ""
            host = "localhost" if self.host in HERE else self.host
            print(f"Viewer: http://{host}:{server.get_port()} (Ctrl-C ends it{taken})", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            server.stop()

    def _port(self) -> int:
        wanted = [self.port] if self.port is not None else range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
        said = ""
        for port in wanted:
            with socket.socket() as tried:
                # as viser does: a port that a page was on a moment ago is free
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    tried.bind((self.host, port))
                except (OSError, OverflowError) as error:
                    said = one_line(error)
                else:
                    return int(tried.getsockname()[1])
        raise PmniError(f"port: {self.host}:{wanted[0]} can't be listened on ({said}): give another by --port")

    def _subject(self) -> Subject:
        # open3d takes seconds to load, and for what pmni eval wrote nerfstudio too, which `--help` need not wait for
        import numpy as np

        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.evaluation.metrics import transform_poses
        from pmni_nerfstudio.evaluation.truth import find_truth, read_mesh, read_poses, read_truth
        from pmni_nerfstudio.viewer.view import Subject

        is_folder = self.result.is_dir()
        folder, mesh_file = (self.result, _mesh_in(self.result)) if is_folder else (self.result.parent, self.result)
        mesh = read_mesh(mesh_file)
        outcome = None
        if is_folder and (folder / "metrics.json").is_file():
            from pmni_nerfstudio.report.outcome import read_outcome

            outcome = read_outcome(folder)
        if self.data is not None:
            scene = read_scene(self.data)
        elif outcome is not None:
            scene = outcome.scene
        else:
            scene = _scene_of(folder) if is_folder else None
        truth = read_truth(self.truth) if self.truth is not None else None if scene is None else find_truth(scene)
        if self.poses is not None and scene is None and truth is None:
            raise PmniError(f"{self.poses}: cameras of which views? Give --data DIR too")
        cameras: dict[str, Any] = {}
        views = scene.num_views if scene is not None else len(truth.c2w) if truth is not None else 0
        poses = self.poses if self.poses is not None else folder / "poses.npy"
        if views and (self.poses is not None or poses.is_file()):
            cameras["refined"] = read_poses(poses, views)
        if scene is not None and scene.c2w is not None:
            cameras["given"] = transform_poses(scene.world_from_unit, scene.c2w)
        subject: dict[str, Any] = {"title": mesh_file.name if outcome is None else outcome.title}
        record = None if outcome is None else outcome.record
        if record is not None:
            subject |= {"figures": _figures(record["surface"], record["poses"], record["normals"], record["units"])}
            subject |= {"units": record["units"]}
        if truth is not None:
            if record is not None and record["surface"] is not None and self.truth is None:
                similarity = np.eye(4) if record["similarity"] is None else np.array(record["similarity"])
            else:
                similarity = self._similarity(mesh_file, mesh, cameras.get("refined"), truth, subject)
            true_mesh = truth.mesh.copy().apply_transform(truth.world_from_unit)
            subject |= {"truth": true_mesh, "truth_from_data": similarity}
        return Subject(mesh=mesh, scene=scene, cameras=cameras, **subject)

    def _similarity(self, file: Path, mesh: Any, c2w: Any, truth: Any, subject: dict[str, Any]) -> Any:
        """As `pmni eval` finds it, whose figures go into the subject."""
        from dataclasses import asdict

        from pmni_nerfstudio.evaluation.score import score

        if c2w is not None and len(c2w) != len(truth.c2w):
            raise PmniError(f"{file}: has {len(c2w)} views and the truth {len(truth.c2w)}: is it this scene's?")
        found = score(mesh, c2w, truth, self.align)
        if found is None:
            advice = (
                "is it in the data's world?" if self.align else "is it in the data's world, or does it need --align?"
            )
            raise PmniError(f"{file}: none of the truth's cameras sees this mesh; {advice}")
        poses = None if found.poses is None else asdict(found.poses)
        subject["figures"] = _figures(asdict(found.surface), poses, None, subject.get("units", "units"))
        return found.similarity


def _mesh_in(folder: Path) -> Path:
    found = next((folder / name for name in _MESHES if (folder / name).is_file()), None)
    if found is None:
        raise PmniError(
            f"{folder}: holds no mesh: give a folder that pmni eval, export or register wrote, or a mesh's file"
        )
    return found


def _scene_of(folder: Path) -> Scene | None:
    """What `pmni export` and `pmni register` worked on, as their transforms.json has it, if it is still there."""
    from pmni_nerfstudio.data.scene import MASKS, read_scene
    from pmni_nerfstudio.export.cameras import TRANSFORMS

    path = folder / TRANSFORMS
    if not path.is_file():
        return None
    try:
        mask = folder / json.loads(path.read_text(encoding="utf-8"))["frames"][0]["mask_path"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise PmniError(
            f"{path}: names no views' masks ({one_line(error)}): export it again, or give --data"
        ) from error
    root = mask.resolve().parent.parent
    return read_scene(root) if (root / MASKS).is_dir() and mask.is_file() else None


def _figures(surface: Any, poses: Any, normals: Any, units: str) -> str:
    """Of a record's parts, as a list in Markdown."""
    lines = []
    if surface is not None:
        lines.append(f"- Chamfer {surface['chamfer']:.4g} {units} ({surface['chamfer_pct']:.3g}% of the diameter)")
        lines.append(f"- F-score {surface['fscore']:.4f} at {surface['threshold']:g} {units}")
    if poses is not None:
        lines.append(f"- rotation {poses['rot_deg']:.3f} deg off, mean; {poses['rot_deg_max']:.3f} at worst")
    if normals is not None and normals["mae_deg"] is not None:
        lines.append(f"- normals {normals['mae_deg']:.3g} deg off, mean")
    return "\n".join(lines)
