# SPDX-License-Identifier: Apache-2.0
"""Jobs done, shown as they are: what was finished before is not done again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pmni_nerfstudio.data.folder_lock import alone_in
from pmni_nerfstudio.studies.job import Job, Outcome, finished, why_not, with_reason
from pmni_nerfstudio.studies.summary import value

Runner = Callable[[Sequence[Job]], Generator[Outcome, None, None]]


def do_jobs(
    jobs: Sequence[Job],
    out: Path,
    run: Runner,
    console: Console,
    can_not: Callable[[str], str | None] = why_not,
) -> list[Outcome]:
    """Outcomes of all jobs, in their order.

    Args:
        jobs: to be done.
        out: folder of all jobs; exists.
        run: does those that are left, and yields outcomes as they come; when closed, it ends what is at work.
        console: for progress.
        can_not: why a method can't be run here, or None.

    Raises:
        PmniError: nobody knows a method, an old record is broken, or another process is at work in the folder.
        SystemExit: with code 130, after Ctrl-C.
    """
    with alone_in(out):
        return _do_jobs(jobs, out, run, console, can_not)


def _do_jobs(
    jobs: Sequence[Job], out: Path, run: Runner, console: Console, can_not: Callable[[str], str | None]
) -> list[Outcome]:
    reasons = {method: can_not(method) for method in dict.fromkeys(job.method for job in jobs)}
    outcomes: dict[str, Outcome] = {}
    for job in jobs:
        before, reason = finished(job, out), reasons[job.method]
        if before is not None:
            outcomes[job.name] = before
        elif reason is not None:
            outcomes[job.name] = with_reason(job, reason, out)
    left = [job for job in jobs if job.name not in outcomes]
    if len(left) < len(jobs):
        console.print(f"{len(jobs) - len(left)} of {len(jobs)} jobs are done, or can't be done here.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    if not left:
        return [outcomes[job.name] for job in jobs]
    try:
        with Progress(*columns, console=console, transient=True) as progress, closing(run(left)) as coming:
            task = progress.add_task("Training and measuring", total=len(left))
            for outcome in coming:
                outcomes[Path(outcome.folder).name] = outcome
                console.print(_line(outcome), highlight=False, soft_wrap=True)
                progress.advance(task)
    except KeyboardInterrupt:
        told = f"Stopped. What was finished stays in {out}: the same command goes on from there."
        console.print(told, highlight=False, soft_wrap=True, markup=False)
        raise SystemExit(130) from None
    return [outcomes[job.name] for job in jobs]


def _line(outcome: Outcome) -> str:
    head = escape(f"{outcome.label}, {Path(outcome.scene).name}, seed {outcome.seed}")
    if outcome.reason is not None:
        return f"[red]failed[/red] {head}: {escape(outcome.reason)}"
    told = [
        f"{found:.3g} {words}"
        for column, words in (
            ("rot_deg", "deg of rotation"),
            ("chamfer_pct", "% Chamfer"),
            ("mae_deg", "deg of normals"),
        )
        if (found := value(outcome, column)) is not None
    ]
    return f"done {head}: {', '.join(told)}, {outcome.seconds:.0f} s"
