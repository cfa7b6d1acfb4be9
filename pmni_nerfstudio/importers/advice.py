# SPDX-License-Identifier: Apache-2.0
"""Advice for folders that are no scene folders but can be made into one."""

from __future__ import annotations

import shlex
from pathlib import Path

from pmni_nerfstudio.data.images import NORMAL_SUFFIXES
from pmni_nerfstudio.data.scene import default_normals_folder, is_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.registry import recognize


def check_is_scene(data: Path, method: str) -> None:
    """Check that a folder may be a scene, or tell how to make one of it; faults of a scene are left to `read_scene`.

    Args:
        data: folder that was given as a scene.
        method: method of `ns-train` to name.

    Raises:
        PmniError: There is no such folder, or it has the files of another format.
    """
    if not data.is_dir():
        raise PmniError(
            f"{data}: {'is not a folder' if data.exists() else 'does not exist'}; give the folder of a scene"
        )
    # A scene folder with faults is read all the same, for the messages that name them.
    if is_scene(data) or (data / "mask").is_dir() and default_normals_folder(data) is not None:
        return
    source, name = data, recognize(data)
    if name is None and any(path.suffix.lower() in NORMAL_SUFFIXES for path in data.iterdir()):
        source = data.absolute().parent  # perhaps the maps themselves were given
        name = recognize(source)
    if name is None:
        return
    scene = source.absolute().with_name(f"{source.absolute().name}_scene")
    commands = ["pmni", "prepare", str(source), str(scene)], ["ns-train", method, "--data", str(scene)]
    raise PmniError(
        f"{data}: is not a scene folder, but one can be made of {source} ({name}): {' && '.join(map(shlex.join, commands))}"
    )
