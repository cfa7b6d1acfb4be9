# SPDX-License-Identifier: Apache-2.0
"""`pmni compare`: several methods on one scene."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from pmni_nerfstudio.studies.job import Job


@dataclass(kw_only=True)
class CompareCommand:
    """Train several methods on one scene, measure all alike, and put them side by side: a table and a page of pictures.

    Methods that need poses get the true ones, where DIR/truth or --truth has them, else the scene's own; those of
    nerfstudio's surface family get the scene in sdfstudio's format, with its photographs or pictures shaded from its
    normals. What was finished in the folder before is not done again.
    """

    data: tyro.conf.Positional[Path]
    """The scene."""
    methods: tuple[str, ...] = ("pmni", "pmni-calibrated", "pmni-original", "neus-facto")
    """Methods of ns-train, with flags of theirs if need be, in quotes: "pmni-original --max-num-iterations 1000". Without a
    GPU neus-facto is neus-facto-small."""
    output_dir: Path
    """Folder for runs, compare.json, compare.csv and compare.html."""
    truth: Path | None = None
    """Truth folder, where it isn't in the scene's."""
    seed: int = 42
    """Of every run."""

    def main(self) -> None:
        """Run, print the table, write the page.

        Raises:
            PmniError: a mistake in the options, or the scene is broken.
        """
        import torch
        from rich.console import Console

        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.studies.comparison import write_comparison
        from pmni_nerfstudio.studies.engines import gpu_ids, run_locally
        from pmni_nerfstudio.studies.running import do_jobs
        from pmni_nerfstudio.studies.summary import outcome_table, write_outcomes

        console = Console()
        if not all(words.split() for words in self.methods):
            raise PmniError("methods: one of them is empty: give names, as in --methods pmni neus-facto")
        on_cuda = torch.cuda.is_available()
        jobs = list(dict.fromkeys(self._job(words, on_cuda) for words in self.methods))
        # What is wrong with the scene is said before anything trains. Elsewhere, since a process is said to have held
        # what the one that began it held at most.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(_check_scene, self.data).result()
        if self.truth is not None and not self.truth.is_dir():
            raise PmniError(f"{self.truth}: no such truth folder")
        make_output_folder(self.output_dir)
        out = self.output_dir.resolve()
        # one after another: their times are to be compared
        outcomes = do_jobs(jobs, out, lambda left: run_locally(left, out, 1, gpu_ids()), console)
        files = write_outcomes(out, "compare", outcomes)
        console.print(outcome_table(outcomes, f"{self.data}"))
        for outcome in outcomes:
            if outcome.reason is not None:
                console.print(f"{outcome.label}: {outcome.reason}", highlight=False, soft_wrap=True, markup=False)
        files.append(out / "compare.html")
        write_comparison(files[-1], self.data.resolve(), outcomes)
        for file in files:
            console.print(f"wrote {file}", highlight=False, soft_wrap=True)
        if all(outcome.reason is not None for outcome in outcomes):
            raise PmniError(f"{self.output_dir}: none of the methods has a result: see compare.csv for why")

    def _job(self, method: str, on_cuda: bool) -> Job:
        import shlex

        from pmni_nerfstudio.studies.job import Job

        try:
            words = shlex.split(method)
        except ValueError as error:
            raise PmniError(f"methods: {method}: {error}: put flags as in a shell") from error
        name = "neus-facto-small" if words[0] == "neus-facto" and not on_cuda else words[0]
        if name != words[0]:
            print("neus-facto needs a GPU: neus-facto-small runs in its place.")
        truth = None if self.truth is None else self.truth.resolve()
        return Job(name, self.data.resolve(), self.seed, tuple(words[1:]), truth=truth)


def _check_scene(folder: Path) -> None:
    from pmni_nerfstudio.data.scene import read_scene

    read_scene(folder)
