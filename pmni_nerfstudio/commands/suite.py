# SPDX-License-Identifier: Apache-2.0
"""`pmni suite`: scenes x methods x seeds."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from rich.console import Console

    from pmni_nerfstudio.studies.job import Job, Outcome


@dataclass(kw_only=True)
class SuiteCommand:
    """Train and measure scenes x methods x seeds, one process each; goes on where it was stopped.

    SUITE.yml holds scenes (folders, patterns), methods (names, or name and flags), seeds, and flags of pmni eval. Each
    run's folder has its log, its run and its result; suite.json and suite.csv have all the numbers.
    """

    suite: tyro.conf.Positional[Path]
    """The suite's YAML file."""
    output_dir: Path
    """Folder for all runs; one that has some already is gone on with."""
    engine: Literal["local", "ray"] = "local"
    """This machine's cores or GPUs; or Ray: the cluster that RAY_ADDRESS names, else one of this machine's own."""
    jobs: int | None = None
    """So many side by side; without: one a GPU, else one for two cores; on Ray as many as there is room for."""

    def main(self) -> None:
        """Run, and print mean and spread by method.

        Raises:
            PmniError: a mistake in the file or the options.
        """
        from rich.console import Console

        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.studies.running import do_jobs
        from pmni_nerfstudio.studies.suite import read_suite
        from pmni_nerfstudio.studies.summary import spread_table, write_outcomes

        if self.jobs is not None and self.jobs < 1:
            raise PmniError(f"jobs: {self.jobs} at once is none: give 1 or more")
        jobs = read_suite(self.suite)
        make_output_folder(self.output_dir)
        console = Console()
        outcomes = do_jobs(jobs, self.output_dir, lambda left: self._run(left, console), console)
        files = write_outcomes(self.output_dir, "suite", outcomes)
        console.print(spread_table(outcomes, f"{self.suite}: mean and standard deviation"))
        for file in files:
            console.print(f"wrote {file}", highlight=False, soft_wrap=True)
        failed = sum(outcome.reason is not None for outcome in outcomes)
        if failed:
            raise PmniError(
                f"{self.output_dir}: {failed} of {len(outcomes)} runs have no result: see suite.csv for why"
            )

    def _run(self, jobs: Sequence[Job], console: Console) -> Generator[Outcome, None, None]:
        from pmni_nerfstudio.studies.engines import gpu_ids, jobs_at_once, run_locally, run_on_ray

        out = self.output_dir.resolve()
        if self.engine == "ray":
            return run_on_ray(jobs, out, self.jobs, started=console.print)
        gpus = gpu_ids()
        return run_locally(jobs, out, self.jobs or jobs_at_once(gpus), gpus)
