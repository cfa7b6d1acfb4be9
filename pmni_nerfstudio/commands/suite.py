# SPDX-License-Identifier: Apache-2.0
"""`pmni suite`: scenes x methods x seeds."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from rich.console import Console

    from pmni_nerfstudio.studies.job import Job, JobResult


@dataclass(kw_only=True)
class SuiteCommand:
    """Train and evaluate scenes x methods x seeds, each run in a process of its own. A stopped suite can be continued.

    SUITE.yml lists scenes (folders or patterns), methods (names, or name and flags), seeds, and flags of pmni eval. The
    folder of each run has its log, training run and evaluation; suite.json and suite.csv have all metrics.
    """

    suite: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SUITE")]
    """YAML file of the suite."""
    output_dir: Path
    """Folder for all runs; runs that already finished there are not repeated."""
    engine: Literal["local", "ray"] = "local"
    """local: the cores or GPUs of this machine; ray: the Ray cluster named by RAY_ADDRESS, or else a local Ray instance."""
    jobs: int | None = None
    """Number of parallel runs; by default one per GPU, or one per two cores without a GPU, or on Ray as many as fit."""

    def main(self) -> None:
        """Run the suite, and print mean and standard deviation by method.

        Raises:
            PmniError: the suite file or an option is invalid, or a run failed.
        """
        from rich.console import Console

        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.studies.running import run_jobs
        from pmni_nerfstudio.studies.suite import read_suite
        from pmni_nerfstudio.studies.summary import method_table, write_results

        if self.jobs is not None and self.jobs < 1:
            raise PmniError(f"jobs: {self.jobs} is not positive; give 1 or more")
        jobs = read_suite(self.suite)
        make_output_folder(self.output_dir)
        console = Console()
        results = run_jobs(jobs, self.output_dir, lambda remaining: self._run(remaining, console), console)
        files = write_results(self.output_dir, "suite", results)
        console.print(method_table(results, f"{self.suite}: mean and standard deviation"))
        for file in files:
            console.print(f"wrote {file}", highlight=False, soft_wrap=True)
        failed = sum(result.reason is not None for result in results)
        if failed:
            raise PmniError(f"{self.output_dir}: {failed} of {len(results)} runs failed; see suite.csv for the reasons")

    def _run(self, jobs: Sequence[Job], console: Console) -> Generator[JobResult, None, None]:
        from pmni_nerfstudio.studies.engines import available_gpus, default_parallel_jobs, run_locally, run_on_ray
        from pmni_nerfstudio.studies.job import failed_result, run_job

        out = self.output_dir.resolve()
        if self.engine == "ray":
            return run_on_ray(run_job, failed_result, jobs, out, self.jobs, on_start=console.print)
        gpus = available_gpus()
        return run_locally(run_job, jobs, out, self.jobs or default_parallel_jobs(gpus), gpus)
