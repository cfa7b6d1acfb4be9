# SPDX-License-Identifier: Apache-2.0
"""Choice between several folders of normal maps that lie side by side, as in the release of SuperNormal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pmni_nerfstudio.errors import SceneError

_TRUTH = re.compile(r"(^|[_\-. ])(gt|ground[_\-. ]?truth|true|truth)$", re.I)
_SPACE = re.compile(r"^normals?([_\-. ](camera|world)[_\-. ]space)?[_\-. ]*", re.I)
_USUAL = ("normal", "normals", "normal_camera_space", "normal_world_space")


def choose_normals_folder(root: Path, names: Sequence[str]) -> tuple[str, list[str]]:
    """Choose one of several folders of normal maps; the ground truth only if there are no estimates.

    Args:
        root: folder that holds them, for messages.
        names: their names, at least one.

    Returns:
        The chosen name, and at most one warning, which names the others.

    Raises:
        SceneError: There are estimates by several methods.
    """
    estimates = [name for name in names if not is_ground_truth(name)]
    candidates = estimates or list(names)
    usual = [name for name in _USUAL if name in candidates]
    if usual:
        candidates = usual
    # The same normals in camera and in world space; camera space does not depend on the poses.
    candidates = sorted(candidates, key=lambda name: ("world" in name.lower(), name))
    if len({_SPACE.sub("", name).lower() for name in candidates}) > 1:
        raise SceneError(
            f"{root}: has several folders of normals ({', '.join(names)}); choose one with --normals in pmni prepare, or "
            "--normals-folder in other commands"
        )
    chosen, others = candidates[0], [name for name in names if name != candidates[0]]
    if not others:
        return chosen, []
    return chosen, [
        f"{root}: normals are read from {chosen}, and not from {', '.join(others)}; choose with --normals in pmni prepare, "
        "or --normals-folder in other commands"
    ]


def warn_of_lossy(files: Sequence[Path]) -> list[str]:
    """Warn of normal maps in a lossy format."""
    lossy = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".webp")]
    if not lossy:
        return []
    return [
        f"{lossy[0]}: {len(lossy)} of {len(files)} normal maps are in a lossy format, which costs degrees at edges and "
        "contours; save them as PNG with 16 bits or EXR"
    ]


def is_ground_truth(name: str) -> bool:
    """Whether a folder's name says that it holds the true normals."""
    return _TRUTH.search(name) is not None
