# SPDX-License-Identifier: Apache-2.0
"""What README.md tells a user to type."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def readme_commands() -> list[str]:
    """Lines of the indented code blocks, without their comments, each once. (Fenced blocks hold no commands.)"""
    text = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    lines = re.findall(r"^ {4}(\S.*)$", text, flags=re.M)
    return list(dict.fromkeys(re.sub(r"\s+#.*", "", line).strip() for line in lines))


def readme_command(name: str) -> str:
    """The one that begins with these words.

    Raises:
        ValueError: none does, or several.
    """
    (command,) = (command for command in readme_commands() if command.startswith(f"{name} "))
    return command


def words_of(command: str, stand_for: Mapping[str, Path]) -> list[str]:
    """A command's words, with paths in the place of names such as DIR, and the programs of this environment."""
    for name, path in stand_for.items():
        command = re.sub(rf"\b{re.escape(name)}\b", str(path), command)
    program, *rest = shlex.split(command)
    here = Path(sys.executable).parent / program
    return [str(here if here.exists() else program), *rest]
