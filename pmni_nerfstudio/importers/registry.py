# SPDX-License-Identifier: Apache-2.0
"""All formats by name, in the order in which they are tried: the more specific ones first."""

from __future__ import annotations

from pathlib import Path

from pmni_nerfstudio.importers.colmap import COLMAP
from pmni_nerfstudio.importers.diligent_mv import DILIGENT_MV
from pmni_nerfstudio.importers.gaussian_splatting import GAUSSIAN_SPLATTING
from pmni_nerfstudio.importers.idr import MONOSDF, NEUS, RNB_NEUS
from pmni_nerfstudio.importers.luces_mv import LUCES_MV
from pmni_nerfstudio.importers.meshroom import MESHROOM
from pmni_nerfstudio.importers.metashape import METASHAPE
from pmni_nerfstudio.importers.plain_folder import PLAIN
from pmni_nerfstudio.importers.realityscan import REALITYSCAN
from pmni_nerfstudio.importers.source import Format
from pmni_nerfstudio.importers.transforms_json import TRANSFORMS

FORMATS: dict[str, Format] = {
    "diligent-mv": DILIGENT_MV,
    "monosdf": MONOSDF,
    "rnb-neus": RNB_NEUS,
    "neus": NEUS,
    "nerfstudio": TRANSFORMS,
    "colmap": COLMAP,
    "metashape": METASHAPE,
    "meshroom": MESHROOM,
    "realityscan": REALITYSCAN,
    "gaussian-splatting": GAUSSIAN_SPLATTING,
    "luces-mv": LUCES_MV,
    "plain": PLAIN,
}


_SAME_CAMERAS = ("diligent-mv", "monosdf", "rnb-neus", "neus")
"""Formats that share files, the more specific ones first."""


def other_formats(folder: Path, name: str) -> list[str]:
    """Formats with cameras, besides the named one, that a folder has as well."""
    skipped = (*_SAME_CAMERAS, "plain", name) if name in _SAME_CAMERAS else (*_SAME_CAMERAS[:-1], "plain", name)
    return [other for other, candidate in FORMATS.items() if other not in skipped and candidate.recognize(folder)]


def recognize(folder: Path) -> str | None:
    """Name of the first format that a folder has, or None.

    Raises:
        PmniError: The folder holds several sets of normal maps.
    """
    return next((name for name, candidate in FORMATS.items() if candidate.recognize(folder)), None)
