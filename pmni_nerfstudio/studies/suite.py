# SPDX-License-Identifier: Apache-2.0
"""A suite's file: scenes, methods and seeds, every one with every other.

scenes: [data/bear, "synthetic/*"]    # folders and patterns, from the file's own; or {path: ..., truth: ...}
methods:
  - pmni
  - {name: pmni-calibrated, flags: [--max-num-iterations, "500"]}
seeds: [1, 2, 3]                      # 42 without
eval: [--threshold, "0.5"]            # more of pmni eval's flags
"""

from __future__ import annotations

import glob
import os
import reprlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from pmni_nerfstudio.data.files import reason
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.studies.job import Job

_KEYS = {"scenes", "methods", "seeds", "eval"}


def read_suite(path: Path) -> list[Job]:
    """The jobs of a suite's file, by scene, method and seed.

    Raises:
        PmniError: the file is missing or broken, or names a scene that isn't there.
    """
    if not path.is_file():
        raise PmniError(f"{path}: does not exist: give a suite's YAML file")
    try:
        suite = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # of tags, dates, numbers and depths PyYAML raises whatever Python does
        raise PmniError(f"{path}: is no YAML ({reason(error)})") from error
    if not isinstance(suite, dict) or not {"scenes", "methods"} <= suite.keys():
        raise PmniError(f"{path}: needs the keys scenes and methods")
    unknown = sorted(_said(key).strip("'") for key in suite.keys() - _KEYS)
    if unknown:
        raise PmniError(f"{path}: {unknown[0]}: is no key of a suite: use {', '.join(sorted(_KEYS))}")
    scenes = [scene for entry in _list(path, suite, "scenes") for scene in _scenes(path, entry)]
    methods = [_method(path, entry) for entry in _list(path, suite, "methods")]
    seeds = _list(path, suite, "seeds") if "seeds" in suite else [42]
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise PmniError(f"{path}: seeds: are whole numbers, as in [1, 2, 3]")
    eval_flags = _words(path, "eval", suite.get("eval") or [])
    jobs = [
        Job(name, scene, seed, flags, eval_flags, truth)
        for (scene, truth), (name, flags), seed in product(scenes, methods, seeds)
    ]
    return list({job.name: job for job in jobs}.values())


def _list(path: Path, suite: dict[str, Any], key: str) -> list[Any]:
    found = suite[key]
    if not isinstance(found, list) or not found:
        raise PmniError(f"{path}: {key}: must be a list with something in it")
    return found


def _scenes(path: Path, entry: Any) -> Iterator[tuple[Path, Path | None]]:
    truth = None
    if isinstance(entry, dict) and entry.keys() <= {"path", "truth"} and "path" in entry:
        truth = path.parent.resolve() / _said(entry["truth"]).strip("'") if "truth" in entry else None
        entry = entry["path"]
    if not isinstance(entry, str):
        raise PmniError(f"{path}: scenes: {_said(entry)} is no folder, pattern, or {{path: ..., truth: ...}}")
    root = path.parent.resolve()  # Ray's workers and later readers of a run stand elsewhere
    if os.path.isdir(root / entry):  # an absolute entry stays as it is, and so does a name with brackets
        found = [root / entry]
    elif "\0" not in entry:
        found = [root / name for name in sorted(glob.glob(entry, root_dir=root)) if os.path.isdir(root / name)]
    else:
        found = []
    if not found:
        raise PmniError(f"{path}: scenes: {_said(entry)}: no such folder beneath {root}")
    if truth is not None and not os.path.isdir(truth):
        raise PmniError(f"{path}: scenes: {_said(str(truth))}: no such truth folder")
    yield from ((scene, truth) for scene in found)


def _method(path: Path, entry: Any) -> tuple[str, tuple[str, ...]]:
    if isinstance(entry, str):
        return entry, ()
    if isinstance(entry, dict) and entry.keys() <= {"name", "flags"} and isinstance(entry.get("name"), str):
        return entry["name"], _words(path, "flags", entry.get("flags") or [])
    raise PmniError(f"{path}: methods: {_said(entry)} is no name, or {{name: ..., flags: [...]}}")


def _said(entry: Any) -> str:
    """An entry to quote: a word whole, all else cut short, since aliases make lists grow without end."""
    return repr(entry) if isinstance(entry, str) and len(entry) < 1000 else reprlib.repr(entry)


def _words(path: Path, key: str, entry: Any) -> tuple[str, ...]:
    if not isinstance(entry, list) or not all(isinstance(word, (str, int, float)) for word in entry):
        raise PmniError(f"{path}: {key}: must be a list of words, as in [--max-num-iterations, 500]")
    return tuple(str(word) for word in entry)
