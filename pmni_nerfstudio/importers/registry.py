# SPDX-License-Identifier: Apache-2.0
"""The formats, in the order in which they are looked for: those with more to be known by come first."""

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


def recognise(folder: Path) -> str | None:
    """The name of the first format that a folder has, or None.

    Raises:
        PmniError: it looks like one, but can't be told apart.
    """
    return next((name for name, kind in FORMATS.items() if kind.recognise(folder)), None)
