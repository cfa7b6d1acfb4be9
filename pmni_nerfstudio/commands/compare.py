# SPDX-License-Identifier: Apache-2.0
"""`pmni compare`: several methods on one scene."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from pmni_nerfstudio.studies.job import Job


@dataclass(kw_only=True)
class CompareCommand:
    """Train several methods on one scene, evaluate all in the same way, and write a table and a page with images.

    Methods that need poses get the true poses if the scene has ground truth (DIR/truth or --truth), or else the scene's
    own poses. nerfstudio's surface methods get the scene in sdfstudio's format, with its photographs or images shaded
    from its normals. Methods that finished earlier in the output folder are not run again.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Scene folder."""
    methods: tuple[str, ...] = ("pmni", "pmni-calibrated", "pmni-original", "neus-facto")
    """Methods of ns-train; a method with flags is quoted: "pmni-original --max-num-iterations 1000". Without a GPU,
    neus-facto is replaced by neus-facto-small."""
    output_dir: Path
    """Folder for the runs, compare.json, compare.csv and compare.html."""
    truth: Path | None = None
    """Ground-truth folder, if it is not in the scene folder."""
    seed: int = 42
    """Random seed of all runs."""

    def main(self) -> None:
        """Run the methods, print the table and write the page.

        Raises:
            PmniError: an option or the scene is invalid, or all methods failed.
        """
        import torch
        from rich.console import Console

        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.studies.comparison import write_comparison
        from pmni_nerfstudio.studies.engines import available_gpus, run_locally
        from pmni_nerfstudio.studies.job import run_job
        from pmni_nerfstudio.studies.running import run_jobs
        from pmni_nerfstudio.studies.summary import result_table, write_results

        console = Console()
        if not all(method.split() for method in self.methods):
            raise PmniError("methods: one of the names is empty; give names, as in --methods pmni neus-facto")
        on_cuda = torch.cuda.is_available()
        jobs = list(dict.fromkeys(self._job(method, on_cuda) for method in self.methods))
        # An invalid scene fails before any training. It is read in another process, because the peak memory of a child
        # process includes that of its parent.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(_check_scene, self.data).result()
        if self.truth is not None and not self.truth.is_dir():
            raise PmniError(f"{self.truth}: no such folder; give a ground-truth folder")
        make_output_folder(self.output_dir)
        out = self.output_dir.resolve()
        # One job at a time, so that the times are comparable.
        results = run_jobs(
            jobs, out, lambda remaining: run_locally(run_job, remaining, out, 1, available_gpus()), console
        )
        files = write_results(out, "compare", results)
        console.print(result_table(results, f"{self.data}"))
        for result in results:
            if result.reason is not None:
                console.print(f"{result.label}: {result.reason}", highlight=False, soft_wrap=True, markup=False)
        files.append(out / "compare.html")
        write_comparison(files[-1], self.data.resolve(), results)
        for file in files:
            console.print(f"wrote {file}", highlight=False, soft_wrap=True)
        if all(result.reason is not None for result in results):
            raise PmniError(f"{self.output_dir}: all methods failed; see compare.csv for the reasons")

    def _job(self, method: str, on_cuda: bool) -> Job:
        import shlex

        from pmni_nerfstudio.studies.job import Job

        try:
            name, *flags = shlex.split(method)
        except ValueError as error:
            raise PmniError(f"methods: {method}: {error}; quote flags as in a shell") from error
        if name == "neus-facto" and not on_cuda:
            print("neus-facto needs a GPU; running neus-facto-small instead.")
            name = "neus-facto-small"
        ground_truth = None if self.truth is None else self.truth.resolve()
        return Job(name, self.data.resolve(), self.seed, tuple(flags), ground_truth=ground_truth)


def _check_scene(folder: Path) -> None:
    from pmni_nerfstudio.data.scene import read_scene

    read_scene(folder)
