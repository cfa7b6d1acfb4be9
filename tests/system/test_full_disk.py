# SPDX-License-Identifier: Apache-2.0
"""A disk without a free byte, which a limit on the size of files stands for: one line, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pmni_nerfstudio.errors import exit_on_error

FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from pmni_nerfstudio.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("words", [["synth", "{out}"], ["register", "{out}", "--output-dir", "{out}"]])
def test_no_place_for_temporary_files_is_one_line(words: list[str], tmp_path: Path):
    if words[0] == "register":
        from pmni_nerfstudio.commands.synth import SynthCommand

        SynthCommand(out=tmp_path / "x", views=4, width=32, height=28, mesh_resolution=32).main()
    command = [sys.executable, "-W", "ignore", "-c", FULL, *(word.format(out=tmp_path / "x") for word in words)]
    end = subprocess.run(command, capture_output=True, text=True, check=False)
    assert end.returncode == 1 and "Traceback" not in end.stderr
    (line,) = [line for line in end.stderr.splitlines() if line.startswith("error:")]
    assert "No usable temporary directory found in" in line and "set TMPDIR" in line


def test_other_missing_files_are_defects():
    with pytest.raises(FileNotFoundError), exit_on_error():
        Path("/nowhere/file").read_text()
