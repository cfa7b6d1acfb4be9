# SPDX-License-Identifier: Apache-2.0
"""All formats by name, in the order in which they are tried: the more specific ones first."""

from __future__ import annotations

from pathlib import Path

from pmni_nerfstudio.importers.colmap import COLMAP
from pmni_nerfstudio.importers.diligent_mv import DILIGENT_MV
from pmni_nerfstudio.importers.idr import MONOSDF, NEUS, RNB_NEUS
from pmni_nerfstudio.importers.metashape import METASHAPE
from pmni_nerfstudio.importers.plain_folder import PLAIN
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
    "plain": PLAIN,
}


def recognize(folder: Path) -> str | None:
    """Name of the first format that a folder has, or None.

    Raises:
        PmniError: The folder holds several sets of normal maps.
    """
    return next((name for name, candidate in FORMATS.items() if candidate.recognize(folder)), None)
