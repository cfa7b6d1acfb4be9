# SPDX-License-Identifier: Apache-2.0
"""Write docs/commands.md, the reference of all commands and options, from the commands themselves.

python scripts/command_reference.py            # write the page
python scripts/command_reference.py --check    # exit with 1 if the page is out of date
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = """\
# Command reference

Generated from the commands by `python scripts/command_reference.py`. Each command prints the same with `--help`.
Options that are on or off have a counterpart: `--maps`, `--no-maps`.
"""
TRAIN = """
## ns-train

`ns-train pmni`, `ns-train pmni-calibrated` and `ns-train pmni-original` take nerfstudio's options and the following.
Defaults are those of `pmni`.
"""
WORDS = {Path: "PATH", str: "TEXT", int: "INT", float: "FLOAT"}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a command."""

    flag: str
    """Flag as typed on the command line; for a positional argument, its name in capitals."""
    values: str
    """Type or choices; empty for a switch."""
    default: str
    """Default value; empty if the option is required."""
    help: str


def options_of(config: type, values: Any = None, prefix: str = "--") -> Iterator[Option]:
    """Options of a dataclass, each from its field, its type and the docstring below it.

    Args:
        config: dataclass whose fields are listed, without those inherited from nerfstudio and those documented as unused.
        values: instance to take the defaults from; the class's own by default.
        prefix: put before each option's name.
    """
    hints = get_type_hints(config, include_extras=True)
    for name, text in _field_docstrings(config).items():
        field = config.__dataclass_fields__[name]
        default = field.default if values is None or field.default == "auto" else getattr(values, name)
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default) or text.startswith("Unused"):
            continue
        renamed = [part.name for part in get_args(hints[name]) if isinstance(getattr(part, "name", None), str)]
        flag = f"{prefix}{renamed[0] if renamed else name.replace('_', '-')}"
        if any("Positional" in str(part) for part in get_args(hints[name])):
            flag = name.upper()
        shown = "" if default is dataclasses.MISSING else _shown(default)
        yield Option(flag, _values(hints[name]), shown, text)


def _field_docstrings(config: type) -> dict[str, str]:
    """Docstrings of the fields of a dataclass and of its bases in this package, each in one line."""
    found: dict[str, str] = {}
    for base in config.__mro__:
        if base.__module__.startswith("pmni_nerfstudio."):
            found = {**_own_field_docstrings(base), **found}
    return dict(sorted(found.items(), key=lambda item: list(config.__dataclass_fields__).index(item[0])))


def _own_field_docstrings(config: type) -> dict[str, str]:
    """Docstrings of a dataclass's own fields, each in one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node, below in zip(tree.body, tree.body[1:]):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_":
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[node.target.id] = " ".join(str(below.value.value).split())
    return found


def _values(hint: Any) -> str:
    """Type or choices of an option as help shows them."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if hint is bool:
        return ""
    if hint in WORDS:
        return WORDS[hint]
    several = " …" if get_origin(hint) in (tuple, list) else ""
    return next((found + several for found in map(_values, get_args(hint)) if found), "")


def _shown(value: Any) -> str:
    if value is None or value in ((), "", {}):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(options: Iterator[Option]) -> str:
    """Options as a Markdown table."""
    rows = ["| Option | Values | Default | |", "|---|---|---|---|"]
    for option in options:
        cells = (f"`{option.flag}`", option.values, option.default or "required", option.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """Text of docs/commands.md."""
    from pmni_nerfstudio.cli import SUBCOMMANDS, command_class
    from pmni_nerfstudio.pmni_config import pmni

    parts = [HEAD]
    for name in sorted(SUBCOMMANDS):
        command = command_class(name)
        positional = "".join(f" {o.flag}" for o in options_of(command) if not o.flag.startswith("-"))
        parts.append(f"\n## pmni {name}\n\n```text\npmni {name}{positional} [OPTIONS]\n```\n")
        parts.append(f"{inspect.getdoc(command)}\n\n{table(options_of(command))}")
    pipeline: Any = pmni.config.pipeline
    parts.append(TRAIN)
    for title, prefix, config in (
        ("Data", "--pipeline.datamanager.dataparser.", pipeline.datamanager.dataparser),
        ("Batches", "--pipeline.datamanager.", pipeline.datamanager),
        ("Model", "--pipeline.model.", pipeline.model),
        ("Losses", "--pipeline.model.loss-weights.", pipeline.model.loss_weights),
        ("Field", "--pipeline.model.sdf-field.", pipeline.model.sdf_field),
        ("Poses", "--pipeline.model.camera-optimizer.", pipeline.model.camera_optimizer),
    ):
        # The batch size depends on the machine: there the class's own default is shown.
        values = None if title == "Batches" else config
        options = table(options_of(type(config), values, ""))
        parts.append(f"\n### {title}\n\nAll begin with `{prefix}`.\n\n{options}")
    return "\n".join(parts)


def main() -> None:
    """Write the page, or check it."""
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text("utf-8") != text:
            sys.exit(f"{PAGE}: is out of date: run python scripts/command_reference.py")
        return
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
