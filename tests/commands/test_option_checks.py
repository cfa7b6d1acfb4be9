# SPDX-License-Identifier: Apache-2.0
"""Options out of range end with one line before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmni_nerfstudio.cli import main

COMMANDS = {
    "eval": ["--load-config", "config.yml"],
    "export": ["--load-config", "config.yml"],
    "objects": ["scene"],
    "sequence": ["scenes"],
    "register": ["scene"],
}


@pytest.mark.parametrize(
    ("command", "option", "value", "message"),
    [
        *((command, "--resolution", "7", "too coarse") for command in ("eval", "export", "objects", "sequence")),
        *((command, "--resolution", "100000000", "too fine") for command in ("eval", "export", "objects", "sequence")),
        *((command, "--seed", "-5", "out of range") for command in ("objects", "sequence", "register")),
        *((command, "--seed", "4294967296", "out of range") for command in ("objects", "sequence", "register")),
    ],
)
def test_resolutions_and_seeds_out_of_range(
    command: str,
    option: str,
    value: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    for folder in ("scene", "scenes/frames/0001"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "config.yml").touch()
    with pytest.raises(SystemExit) as exit:
        main([command, *COMMANDS[command], "--output-dir", "out", option, value])
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 1 and len(lines) == 1
    assert f"{option[2:]}: {value} is {message}" in lines[0]
    assert not (tmp_path / "out").exists()
