# SPDX-License-Identifier: Apache-2.0
"""Plan of a sequence: its frames, settings and shared poses, for the processes that reconstruct blocks of frames."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.sequences.frames import Frame
from pmni_nerfstudio.sequences.fusion import REACH
from pmni_nerfstudio.sequences.shared_poses import SharedPoses

PLAN = "plan.json"
RECORD = "frame.json"
MESHES = "meshes"


@dataclass(frozen=True)
class Settings:
    """Options of a sequence that its frames depend on."""

    normals_folder: str | None
    """Name of the folder of normal maps in every frame; None: chosen as for a single scene."""
    fuse: bool
    """Whether normals are fused over time; of use with static cameras only."""
    steps: int
    """Training steps of a frame; 0: chosen from the size of the maps."""
    resolution: int
    """Marching cubes cells along the diameter of the sphere."""
    seed: int
    """Seed of registration and training."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Frames, settings and shared poses of a sequence, in its output folder."""

    out: Path
    """Output folder, absolute."""
    frames: tuple[Frame, ...]
    settings: Settings
    shared: SharedPoses | None
    """Poses of static cameras; None where every frame is registered by itself."""

    def save(self) -> None:
        """Write the plan into the output folder."""
        write_json(
            self.out / PLAN,
            {
                "frames": [{"name": frame.name, "folder": str(frame.folder)} for frame in self.frames],
                "settings": dataclasses.asdict(self.settings),
                "shared": None if self.shared is None else self.shared.record(),
            },
        )

    @staticmethod
    def load(out: Path) -> Plan:
        """Read the plan that `save` wrote.

        Raises:
            PmniError: the file is missing or invalid.
        """
        advice = "run pmni sequence again"
        record = read_json_object(out / PLAN, advice)
        try:
            frames = tuple(Frame(str(entry["name"]), Path(entry["folder"])) for entry in record["frames"])
            shared = None if record["shared"] is None else SharedPoses.from_record(record["shared"])
            return Plan(out, frames, Settings(**record["settings"]), shared)
        except (KeyError, TypeError, ValueError) as error:
            raise PmniError(f"{out / PLAN}: holds no plan ({error!r}); {advice}") from error

    def folder(self, frame: Frame) -> Path:
        """Folder of a frame's results."""
        return self.out / "frames" / frame.name

    def mesh(self, frame: Frame) -> Path:
        """File of a frame's mesh."""
        return self.out / MESHES / f"{frame.name}.ply"

    def neighbors(self, frame: Frame) -> list[Frame]:
        """Frames whose normals are fused to those of a frame, itself included, in order."""
        if self.shared is None or not self.settings.fuse:
            return [frame]
        at = self.frames.index(frame)
        return list(self.frames[max(0, at - REACH) : at + REACH + 1])

    def key(self, frame: Frame) -> str:
        """Hash of what a frame's result depends on: 16 hexadecimal digits."""
        shared = None if self.shared is None else self.shared.record()
        files = [neighbor.fingerprint for neighbor in self.neighbors(frame)]
        parts = [metadata.version("pmni-nerfstudio"), dataclasses.asdict(self.settings), shared, files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def finished(self, frame: Frame) -> dict[str, Any] | None:
        """Record of a frame that is done with the same data and settings, and did not end with an error.

        Raises:
            PmniError: the record cannot be read.
        """
        path = self.folder(frame) / RECORD
        if not path.is_file() or not self.mesh(frame).is_file():
            return None
        record = read_json_object(path, "remove it to reconstruct this frame again")
        return record if record.get("key") == self.key(frame) and record.get("error") is None else None
