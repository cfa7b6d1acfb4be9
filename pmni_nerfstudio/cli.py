# SPDX-License-Identifier: Apache-2.0
"""The `pmni` command. A subcommand's module is imported only when it is called, so that `pmni --help` is instant."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata

from pmni_nerfstudio.errors import exit_on_error

_USAGE_ERROR = 2


@dataclass(frozen=True)
class Subcommand:
    """Where a subcommand's dataclass is found. It has a field for each option and a method `main`."""

    module: str
    name: str
    help: str


SUBCOMMANDS = {
    "register": Subcommand(
        "pmni_nerfstudio.commands.register",
        "RegisterCommand",
        "Recover poses and a first surface from a scene, with rough poses or none.",
    ),
    "export": Subcommand(
        "pmni_nerfstudio.commands.export", "ExportCommand", "Write the mesh and the refined cameras of a trained run."
    ),
    "eval": Subcommand("pmni_nerfstudio.commands.eval", "EvalCommand", "Measure a run, or any mesh and poses."),
    "report": Subcommand(
        "pmni_nerfstudio.commands.report", "ReportCommand", "Make one page of a folder that pmni eval wrote."
    ),
    "view": Subcommand(
        "pmni_nerfstudio.commands.view", "ViewCommand", "Show a result in the browser: mesh, cameras, errors."
    ),
    "compare": Subcommand(
        "pmni_nerfstudio.commands.compare", "CompareCommand", "Train several methods on one scene, side by side."
    ),
    "suite": Subcommand(
        "pmni_nerfstudio.commands.suite", "SuiteCommand", "Train and measure scenes x methods x seeds."
    ),
    "integrate": Subcommand(
        "pmni_nerfstudio.commands.integrate", "IntegrateCommand", "Integrate normal maps to depth maps."
    ),
    "convert": Subcommand(
        "pmni_nerfstudio.commands.convert",
        "ConvertCommand",
        "Write a scene in sdfstudio's format, for nerfstudio's other surface methods.",
    ),
    "prepare": Subcommand(
        "pmni_nerfstudio.commands.prepare",
        "PrepareCommand",
        "Make a scene of DiLiGenT-MV, NeuS, nerfstudio, COLMAP and other data, or plain normal maps.",
    ),
    "synth": Subcommand(
        "pmni_nerfstudio.commands.synth", "SynthCommand", "Make a synthetic scene whose truth is known."
    ),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run `pmni ARGS`; by default those of the process.

    Raises:
        SystemExit: with code 1 after a mistake in the data, 2 after one in the command line, 0 after --help.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        _print_help()
        raise SystemExit(0 if args else _USAGE_ERROR)
    if args[0] == "--version":
        print(f"pmni-nerfstudio {metadata.version('pmni-nerfstudio')}")
        return
    if args[0] not in SUBCOMMANDS:
        print(f"error: pmni has no command {args[0]}: choose one of {', '.join(SUBCOMMANDS)}", file=sys.stderr)
        raise SystemExit(_USAGE_ERROR)
    # Of torch about nerfstudio's use of it, at every start: nothing that a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|nerfstudio)\.")
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence", module=r"nerfstudio\.")
    subcommand = SUBCOMMANDS[args[0]]
    with exit_on_error():
        import tyro

        command = getattr(import_module(subcommand.module), subcommand.name)
        tyro.cli(command, prog=f"pmni {args[0]}", args=args[1:]).main()


def _print_help() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print("[bold]usage:[/bold] pmni COMMAND [OPTIONS]\n")
    console.print("Surfaces and camera poses from multi-view normal maps. Training is nerfstudio's: ns-train pmni.\n")
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, subcommand in SUBCOMMANDS.items():
        table.add_row(f"[bold]{name}[/bold]", subcommand.help)
    table.add_row("[bold]--version[/bold]", "Print the version.")
    console.print(table)
    console.print("\nEach command has its own --help.")
