# SPDX-License-Identifier: Apache-2.0
"""Commands, links and pictures of README.md and docs/*.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PROGRAMS = re.compile(r"(pmni|ns-[a-z-]+|make|python (examples|benchmarks|scripts)/\S+|python -m pmni_nerfstudio)( |$)")
"""Commands of this project; others (git, pip) are not tested."""
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.M | re.S)


def commands_in(text: str) -> list[str]:
    """Commands of this project in the indented blocks and the ```bash and ```console blocks of a page, without comments."""
    blocks = [code for language, code in _FENCE.findall(text) if language in ("bash", "console")]
    blocks += ["\n".join(re.findall(r"^ {4}(\S.*)$", _FENCE.sub("", text), flags=re.M))]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [re.sub(r"\s+#.*|\s+$", "", re.sub(r"^\$ ", "", line)) for line in lines]
    return [command for command in commands if PROGRAMS.match(command)]


def documented_commands() -> list[str]:
    """Commands of all pages, each once."""
    return list(dict.fromkeys(command for page in PAGES for command in commands_in(page.read_text(encoding="utf-8"))))


def documented_command(name: str) -> str:
    """The first documented command that begins with these words.

    Raises:
        ValueError: there is none.
    """
    found = [command for command in documented_commands() if f"{command} ".startswith(f"{name} ")]
    if not found:
        raise ValueError(f"README.md and docs/*.md show no command {name}")
    return found[0]


def words_of(command: str, substitutions: Mapping[str, Path]) -> list[str]:
    """Words of a command, with paths substituted for names such as DIR."""
    for name, path in substitutions.items():
        command = re.sub(rf"\b{re.escape(name)}\b", str(path), command)
    return shlex.split(command)


def links_in(text: str) -> list[str]:
    """Targets of the links and pictures of a page that lead to files or headings of this repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors_in(text: str) -> set[str]:
    """Anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), flags=re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
