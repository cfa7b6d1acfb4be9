# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's config.yml, which holds Python objects, read without running what a stranger wrote into it.

nerfstudio itself uses PyYAML's unsafe loader, with which `!!python/object/apply:os.system` is a command. Here a tag may
name only what configs are made of: classes and functions of nerfstudio, torch.optim and this package, by the module that
defines them. Objects are made without calling anything but paths, enumerations and the type parameters of classes.
"""

from __future__ import annotations

import importlib
from enum import Enum
from pathlib import PurePath
from typing import Any, Generic

import yaml

_PACKAGES = ("nerfstudio", "pmni_nerfstudio", "torch.optim", "pathlib")


class _ConfigLoader(yaml.SafeLoader):
    """Safe, and with the tags that configs have."""


def load_config(text: str) -> Any:
    """The object that a config.yml describes.

    Raises:
        yaml.YAMLError: it is no YAML, or names what a config has no use for.
    """
    return yaml.load(text, Loader=_ConfigLoader)


def _find(name: str, node: yaml.Node) -> Any:
    module, _, attribute = name.rpartition(".")
    if any(module == package or module.startswith(f"{package}.") for package in _PACKAGES):
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError:
            found = None
        # What a module has only imported, subprocess.run for instance, is not its own.
        home = getattr(found, "__module__", None)
        if callable(found) and (home == module or (module == "pathlib" and str(home).startswith("pathlib"))):
            return found
    raise yaml.constructor.ConstructorError(None, None, f"{name} is nothing that a config is made of", node.start_mark)


def _name(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    return _find(name, node)


def _object(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    found = _find(name, node)
    if not isinstance(found, type) or not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, f"{name} is no class with fields", node.start_mark)
    made = object.__new__(found)
    yield made
    made.__dict__.update(loader.construct_mapping(node))


def _apply(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    found = _find(name, node)
    if not (isinstance(found, type) and issubclass(found, (PurePath, Enum)) and isinstance(node, yaml.SequenceNode)):
        raise yaml.constructor.ConstructorError(None, None, f"{name} is no path or enumeration", node.start_mark)
    return found(*loader.construct_sequence(node, deep=True))


def _subscript(loader: _ConfigLoader, node: yaml.Node) -> Any:
    """`VanillaDataManager[SDFDataset]`, as neus-facto has it: a class with its type parameters."""
    parts = loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else []
    if len(parts) != 2 or not (isinstance(parts[0], type) and issubclass(parts[0], Generic)):
        raise yaml.constructor.ConstructorError(None, None, "no class with type parameters", node.start_mark)
    return parts[0][parts[1]]  # type: ignore[index]


def _tuple(loader: _ConfigLoader, node: yaml.Node) -> tuple:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "a tuple is no sequence", node.start_mark)
    return tuple(loader.construct_sequence(node, deep=True))


_ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", _name)
_ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/object:", _object)
_ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/object/apply:", _apply)
_ConfigLoader.add_constructor("tag:yaml.org,2002:python/object/apply:_operator.getitem", _subscript)
_ConfigLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
