# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's list of methods that are not installed is made without reading source files, and is the same."""

from __future__ import annotations

import inspect

import pytest
from nerfstudio.configs import external_methods

from pmni_nerfstudio.startup_time import caller_names, skip_source_lines


def test_caller_names_are_those_of_inspect():
    def called() -> tuple[list[str], list[str]]:
        return [entry.function for entry in caller_names()], [entry.function for entry in inspect.stack()]

    names, expected = called()
    assert names == expected and names[0] == "called"


def test_methods_that_are_not_installed_are_listed_without_source_lines(monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise AssertionError("reads source lines")

    with monkeypatch.context() as patch:
        patch.setattr(external_methods, "inspect", inspect)
        configs, descriptions = external_methods.get_external_methods()
        skip_source_lines()
        patch.setattr(inspect, "stack", fail)
        again, descriptions_again = external_methods.get_external_methods()
    assert list(again) == list(configs) and len(configs) > 10 and descriptions_again == descriptions
