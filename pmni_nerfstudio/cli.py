# SPDX-License-Identifier: Apache-2.0
"""The `pmni` command. A subcommand NAME is the class NameCommand of the module `pmni_nerfstudio.commands.NAME`.

The modules are imported only when their command is called, so that `pmni --help` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any

from pmni_nerfstudio.allocator import keep_freed_memory
from pmni_nerfstudio.errors import exit_on_error, hide_dependency_warnings
from pmni_nerfstudio.interrupts import exit_interrupted

SUBCOMMANDS = {
    "register": "Recover camera poses and a first surface of a scene, with rough poses or none.",
    "export": "Write the mesh and the refined cameras of a trained run.",
    "eval": "Evaluate a trained run, or any mesh and poses.",
    "report": "Write one HTML page about a result of pmni eval.",
    "asset": "Write a result as glTF: levels of detail with normal maps and colors.",
    "view": "Show a result in the browser: mesh, cameras, errors.",
    "compare": "Train and evaluate several methods on one scene.",
    "objects": "Reconstruct each of several objects that were captured together.",
    "sequence": "Reconstruct an object at several moments, with static or moving cameras.",
    "suite": "Train and evaluate scenes x methods x seeds.",
    "integrate": "Integrate normal maps to depth maps.",
    "convert": "Write a scene in sdfstudio's format, for nerfstudio's other surface methods.",
    "prepare": "Make a scene of DiLiGenT-MV, NeuS, nerfstudio, COLMAP and other data, or plain normal maps.",
    "check": "Check a scene before training: what is read, what does not fit, a contact sheet.",
    "photometric": "Make a scene of images under known lights, by photometric stereo.",
    "synth": "Make a synthetic scene with known ground truth.",
}
"""Names of the subcommands, and what they do."""

_USAGE_ERROR = 2


def command_class(name: str) -> Any:
    """Import the class of a subcommand: a dataclass with one field per option and a method `main`."""
    return getattr(import_module(f"pmni_nerfstudio.commands.{name}"), f"{name.title()}Command")


def main(args: Sequence[str] | None = None) -> None:
    """Run `pmni ARGS`, by default with the arguments of the process.

    Raises:
        SystemExit: with code 0 after --help, 1 after a PmniError, 2 after a wrong command line or a registration that
            failed, 130 after Ctrl-C.
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
    hide_dependency_warnings()
    keep_freed_memory()
    try:
        with exit_on_error():
            import tyro

            tyro.cli(command_class(args[0]), prog=f"pmni {args[0]}", args=args[1:]).main()
    except KeyboardInterrupt:
        raise exit_interrupted(f"pmni {args[0]}: stopped") from None


def _print_help() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print("[bold]usage:[/bold] pmni COMMAND [OPTIONS]\n")
    console.print("Surfaces and camera poses from multi-view normal maps. To train, use nerfstudio: ns-train pmni.\n")
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, description in SUBCOMMANDS.items():
        table.add_row(f"[bold]{name}[/bold]", description)
    table.add_row("[bold]--version[/bold]", "Print the version.")
    console.print(table)
    console.print("\nRun pmni COMMAND --help for the options of a command.")
