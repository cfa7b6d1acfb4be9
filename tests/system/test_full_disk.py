# SPDX-License-Identifier: Apache-2.0
"""A full disk, simulated by a limit on the size of files: a one-line error without a traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.errors import exit_on_error


@pytest.mark.parametrize("words", [["synth", "{out}"], ["register", "{out}", "--output-dir", "{out}"]])
def test_no_place_for_temporary_files_is_one_line(words: list[str], tmp_path: Path):
    if words[0] == "register":
        SynthCommand(out=tmp_path / "x", views=4, width=32, height=28, mesh_resolution=32).main()
    # A process of its own: the imports are what looks for a temporary folder first.
    end = subprocess.run(
        [Path(sys.executable).with_name("pmni"), *(word.format(out=tmp_path / "x") for word in words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),  # noqa: PLW1509
    )
    assert end.returncode == 1 and "Traceback" not in end.stderr
    (line,) = [line for line in end.stderr.splitlines() if line.startswith("error:")]
    assert "No usable temporary directory found in" in line and "set TMPDIR" in line


def test_other_missing_files_are_not_hidden():
    with pytest.raises(FileNotFoundError), exit_on_error():
        Path("/nowhere/file").read_text()
