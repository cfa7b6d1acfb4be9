# SPDX-License-Identifier: Apache-2.0
"""Suite files: scenes, methods and seeds, combined with each other.

scenes: [data/bear, "synthetic/*"]    # folders and patterns, relative to the file; or {path: ..., truth: ...}
methods:
  - pmni
  - {name: pmni-calibrated, flags: [--max-num-iterations, "500"]}
seeds: [1, 2, 3]                      # default: [42]
eval: [--threshold, "0.5"]            # additional flags of pmni eval
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
    """Read the jobs of a suite file, ordered by scene, method and seed, without duplicates.

    Raises:
        PmniError: the file is missing or invalid, or a folder that it names does not exist.
    """
    if not path.is_file():
        raise PmniError(f"{path}: does not exist; give the YAML file of a suite")
    try:
        suite = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML passes on any exception of Python on invalid tags, dates, numbers or nesting
        raise PmniError(f"{path}: is not valid YAML ({reason(error)}); correct it") from error
    if not isinstance(suite, dict) or not {"scenes", "methods"} <= suite.keys():
        raise PmniError(f"{path}: needs the keys scenes and methods")
    unknown = sorted(_quoted(key).strip("'") for key in suite.keys() - _KEYS)
    if unknown:
        raise PmniError(f"{path}: {unknown[0]}: is not a key of a suite; use {', '.join(sorted(_KEYS))}")
    scenes = [scene for entry in _list(path, suite, "scenes") for scene in _scenes(path, entry)]
    methods = [_method(path, entry) for entry in _list(path, suite, "methods")]
    seeds = _list(path, suite, "seeds") if "seeds" in suite else [42]
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise PmniError(f"{path}: seeds: must be whole numbers, as in [1, 2, 3]")
    eval_flags = _flags(path, "eval", suite.get("eval") or [])
    jobs = [
        Job(name, scene, seed, flags, eval_flags, ground_truth)
        for (scene, ground_truth), (name, flags), seed in product(scenes, methods, seeds)
    ]
    return list({job.name: job for job in jobs}.values())


def _list(path: Path, suite: dict[str, Any], key: str) -> list[Any]:
    entries = suite[key]
    if not isinstance(entries, list) or not entries:
        raise PmniError(f"{path}: {key}: must be a list that is not empty")
    return entries


def _scenes(path: Path, entry: Any) -> Iterator[tuple[Path, Path | None]]:
    """Scene folders that an entry of the list names, each with its ground-truth folder or None."""
    root = path.parent.resolve()  # absolute, because Ray's workers have other working directories
    ground_truth = None
    if isinstance(entry, dict) and entry.keys() <= {"path", "truth"} and "path" in entry:
        ground_truth = root / _quoted(entry["truth"]).strip("'") if "truth" in entry else None
        entry = entry["path"]
    if not isinstance(entry, str):
        raise PmniError(f"{path}: scenes: {_quoted(entry)} is not a folder, a pattern, or {{path: ..., truth: ...}}")
    if os.path.isdir(root / entry):  # also absolute paths, and names with brackets, which are no patterns
        folders = [root / entry]
    elif "\0" not in entry:
        folders = [root / name for name in sorted(glob.glob(entry, root_dir=root)) if os.path.isdir(root / name)]
    else:
        folders = []
    if not folders:
        raise PmniError(f"{path}: scenes: {_quoted(entry)}: no such folder below {root}")
    if ground_truth is not None and not os.path.isdir(ground_truth):
        raise PmniError(f"{path}: scenes: {_quoted(str(ground_truth))}: no such ground-truth folder")
    yield from ((folder, ground_truth) for folder in folders)


def _method(path: Path, entry: Any) -> tuple[str, tuple[str, ...]]:
    """Name and flags of a method."""
    if isinstance(entry, str):
        return entry, ()
    if isinstance(entry, dict) and entry.keys() <= {"name", "flags"} and isinstance(entry.get("name"), str):
        return entry["name"], _flags(path, "flags", entry.get("flags") or [])
    raise PmniError(f"{path}: methods: {_quoted(entry)} is not a name, or {{name: ..., flags: [...]}}")


def _flags(path: Path, key: str, entry: Any) -> tuple[str, ...]:
    if not isinstance(entry, list) or not all(isinstance(word, (str, int, float)) for word in entry):
        raise PmniError(f"{path}: {key}: must be a list of words, as in [--max-num-iterations, 500]")
    return tuple(str(word) for word in entry)


def _quoted(entry: Any) -> str:
    """Representation of an entry for a message; long ones are shortened, since YAML aliases can expand without limit."""
    return repr(entry) if isinstance(entry, str) and len(entry) < 1000 else reprlib.repr(entry)
