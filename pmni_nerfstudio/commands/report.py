# SPDX-License-Identifier: Apache-2.0
"""`pmni report`: an HTML page of an evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pmni_nerfstudio.errors import PmniError


@dataclass(kw_only=True)
class ReportCommand:
    """Write report.html for a folder of `pmni eval`: one self-contained page that works offline.

    It shows metrics, views, mesh, cameras and training curves.
    """

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder that `pmni eval` wrote: metrics.json and the files beside it."""
    data: Path | None = None
    """Folder of the evaluated scene, if it has been moved since."""

    def main(self) -> None:
        """Read the evaluation, write the page and print its path.

        Raises:
            PmniError: The folder has no metrics.json, contains an invalid file, or is not writable.
        """
        # open3d and nerfstudio take seconds to import, which would slow down `--help`.
        from rich.console import Console

        from pmni_nerfstudio.evaluation.stored_result import read_evaluated_result
        from pmni_nerfstudio.report.page import write_page
        from pmni_nerfstudio.report.sections import report_sections

        result = read_evaluated_result(self.out, self.data)
        if not os.access(self.out, os.W_OK | os.X_OK):
            raise PmniError(f"{self.out}: is not writable; copy the folder to a writable place")
        path = self.out / "report.html"
        with Console(stderr=True).status("Writing the report"):
            record = result.record
            facts = [("method", record["method"] or "unknown")]
            facts += [("evaluated", f"{result.evaluation_time:%d %B %Y, %H:%M}")]
            facts += [("lengths in", record["units"])]
            labels = {"scene": "scene", "config": "config", "normals_folder": "normals"}
            facts += [(labels[key], str(record[key])) for key in labels if record.get(key) is not None]
            write_page(path, result.title, facts, report_sections(result))
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
