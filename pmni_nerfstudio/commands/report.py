# SPDX-License-Identifier: Apache-2.0
"""`pmni report OUT`: an evaluation as one page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from pmni_nerfstudio.errors import PmniError


@dataclass(kw_only=True)
class ReportCommand:
    """Make report.html of a folder that `pmni eval` wrote: measures, views, mesh, cameras and curves in one file, which
    opens in a browser without a network."""

    out: tyro.conf.Positional[Path]
    """The folder: metrics.json, and what lies beside it."""

    def main(self) -> None:
        """Read, draw, write, and print where the page is.

        Raises:
            PmniError: the folder holds no metrics.json or a broken file, or can't be written to.
        """
        # plotly, open3d and nerfstudio take seconds to load, which `--help` need not wait for
        from rich.console import Console

        from pmni_nerfstudio.report.outcome import read_outcome
        from pmni_nerfstudio.report.page import write_page
        from pmni_nerfstudio.report.sections import sections_of

        outcome = read_outcome(self.out)
        if not os.access(self.out, os.W_OK | os.X_OK):
            raise PmniError(f"{self.out}: can't be written to: copy the folder to where it can")
        path = self.out / "report.html"
        with Console(stderr=True).status("Drawing the page"):
            record = outcome.record
            facts = [("method", record["method"] or "unknown"), ("measured", f"{outcome.measured:%d %B %Y, %H:%M}")]
            facts += [(label, str(record[label])) for label in ("scene", "config") if record[label] is not None]
            write_page(path, outcome.title, facts, sections_of(outcome))
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
