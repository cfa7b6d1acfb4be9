# SPDX-License-Identifier: Apache-2.0
"""`pmni eval`: score a mesh, and poses, against a truth folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from pmni_nerfstudio.evaluation.score import Scores


@dataclass(kw_only=True)
class EvalCommand:
    """Score a mesh, and poses if given, against the truth that `pmni synth` kept: Chamfer, F-score, pose errors."""

    mesh: Path
    """The mesh, in the world and units of the data (.ply, .obj, .stl, .glb)."""
    truth: Path
    """Truth folder, as `pmni synth` writes it."""
    poses: Path | None = None
    """Camera-to-world poses in the world of the mesh: poses.npy or cameras_refined.npz of `pmni export`."""
    align: bool = True
    """Take the result to the true world by a similarity first: for poses that were found. Not for given ones."""
    threshold_pct: float = 1.0
    """Threshold of the F-score in % of the object's diameter."""
    output: Path | None = None
    """JSON file to write the scores to."""

    def main(self) -> None:
        """Score, print, write."""
        if not self.threshold_pct > 0:
            raise PmniError(f"--threshold-pct: {self.threshold_pct} is no threshold; give a number above 0")
        # open3d takes a second to load, which `--help` need not wait for
        from pmni_nerfstudio.evaluation.score import score_files

        scores = score_files(self.mesh, self.truth, self.poses, self.align, self.threshold_pct)
        self._print(scores)
        if self.output is not None:
            self._write(scores)

    def _print(self, scores: Scores) -> None:
        from rich.console import Console
        from rich.table import Table

        surface, poses, facts = scores.surface, scores.poses, scores.facts
        table = Table(title=f"{self.mesh}", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column()
        table.add_row("Chamfer", f"{surface.chamfer_pct:.4f}", "% of the diameter")
        table.add_row("", f"{surface.chamfer:.4g}", "world units")
        table.add_row("  result to truth", f"{surface.accuracy:.4g}", "world units")
        table.add_row("  truth to result", f"{surface.completeness:.4g}", "world units")
        table.add_row("F-score", f"{surface.fscore:.4f}", f"at {surface.threshold_pct:g}% of the diameter")
        if poses is not None:
            table.add_section()
            table.add_row("rotation error", f"{poses.rot_deg:.4f}", "deg, mean")
            table.add_row("", f"{poses.rot_deg_max:.4f}", "deg, worst view")
            table.add_row("views under 1 deg", f"{poses.views_under_1deg:.0%}", "")
            table.add_row("position error", f"{poses.trans_pct:.3f}", "% of the radius, mean")
        table.add_section()
        table.add_row("faces", f"{facts.faces}", "")
        table.add_row("components", f"{facts.components}", "")
        table.add_row("watertight", "yes" if facts.watertight else "no", "")
        table.add_section()
        table.add_row("alignment", "similarity" if self.align else "none", f"scale {scores.scale:.5f}")
        Console().print(table)

    def _write(self, scores: Scores) -> None:
        import json

        from pmni_nerfstudio.data.files import atomic_path

        assert self.output is not None
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.output) as path:
            path.write_text(json.dumps(asdict(scores), indent=2) + "\n", encoding="utf-8")
