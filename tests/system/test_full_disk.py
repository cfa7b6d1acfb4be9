# SPDX-License-Identifier: Apache-2.0
"""A full disk, simulated by a limit on the size of files: a one-line error without a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.programs import run

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.errors import exit_on_error


@pytest.mark.parametrize("words", [["synth", "{out}"], ["register", "{out}", "--output-dir", "{out}"]])
def test_no_place_for_temporary_files_is_one_line(words: list[str], tmp_path: Path):
    if words[0] == "register":
        SynthCommand(out=tmp_path / "x", views=4, width=32, height=28, mesh_resolution=32).main()
    end = run(["pmni", *(word.format(out=tmp_path / "x") for word in words)], largest_file=0)
    assert end.code == 1 and "Traceback" not in end.stderr
    (line,) = [line for line in end.stderr.splitlines() if line.startswith("error:")]
    assert "No usable temporary directory found in" in line and "set TMPDIR" in line


def test_other_missing_files_are_not_hidden():
    with pytest.raises(FileNotFoundError), exit_on_error():
        Path("/nowhere/file").read_text()
