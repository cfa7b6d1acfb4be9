# SPDX-License-Identifier: Apache-2.0
"""Search for the images under known lights from which `pmni photometric` computed a scene's normal maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.photometric.capture import LIGHT_AXES, Capture
from pmni_nerfstudio.photometric.pipeline import read_capture
from pmni_nerfstudio.photometric.writer import SUMMARY

_REMEDY = "give --lights CAPTURE, or make the scene again with pmni photometric"


class FoundCapture(NamedTuple):
    """A capture, and how its image values are to be read."""

    path: Path
    capture: Capture
    gamma: float
    """Power that makes image values linear."""


def find_capture(scene: Scene, given: Path | None = None) -> FoundCapture | str | None:
    """Find the capture of a scene.

    Args:
        scene: scene, in whose folder `pmni photometric` left a record.
        given: folder or file of the capture; None: the one in the record.

    Returns:
        The capture; None if the scene was made from something else, or in a few words why the capture is not found.

    Raises:
        PmniError: The record is broken, or the capture is given, or exists, and cannot be read.
    """
    file = scene.root / SUMMARY
    if given is not None and not given.exists():
        raise PmniError(f"{given}: does not exist; give --lights the folder of the capture, or its photometric.json")
    if not file.is_file():
        if given is None:
            return None
        return FoundCapture(given, read_capture(given, None), 1.0)
    record = read_json_object(file, _REMEDY)
    settings = record.get("settings")
    axes, gamma = record.get("light_axes"), settings.get("gamma") if isinstance(settings, dict) else None
    if (axes is not None and axes not in LIGHT_AXES) or not isinstance(gamma, float | int | None):
        raise PmniError(f"{file}: light_axes or gamma is not what pmni photometric writes; {_REMEDY}")
    path = given
    if path is None:
        recorded = record.get("capture")
        if not isinstance(recorded, str):
            return f"{file} does not say where they are; --lights does"
        path = Path(recorded)
        if not path.exists():
            return f"{path} does not exist any more; --lights says where it is now"
    return FoundCapture(path, read_capture(path, axes), float(gamma or 1.0))


def captured_views(scene: Scene, names: Sequence[str]) -> FoundCapture | str | None:
    """The capture of a scene, with some of its views; see `find_capture`.

    Returns:
        In a few words why there is none also if a name is not among the capture's views.

    Raises:
        PmniError: The record is broken, or the capture cannot be read.
    """
    found = find_capture(scene)
    if not isinstance(found, FoundCapture):
        return found
    by_name = {view.name: view for view in found.capture.views}
    missing = [name for name in names if name not in by_name]
    if missing:
        return f"{found.path} has no view {missing[0]}"
    return found._replace(capture=replace(found.capture, views=tuple(by_name[name] for name in names)))
