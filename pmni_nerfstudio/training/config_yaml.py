# SPDX-License-Identifier: Apache-2.0
"""Safe loading of nerfstudio's config.yml, which contains Python objects.

nerfstudio uses PyYAML's unsafe loader, which executes a tag such as `!!python/object/apply:os.system`. Here a tag may
only name classes and functions of nerfstudio, torch.optim and this package, in the module that defines them. Loading
calls nothing but the constructors of paths and enumerations, and subscripts of generic classes.
"""

from __future__ import annotations

import importlib
from enum import Enum
from pathlib import PurePath
from typing import Any, Generic

import yaml

_PACKAGES = ("nerfstudio", "pmni_nerfstudio", "torch.optim", "pathlib")


class _ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the Python tags that configs contain."""


def load_config(text: str) -> Any:
    """Load the object that a config.yml describes.

    Raises:
        yaml.YAMLError: The text is not valid YAML, or contains a tag that configs do not use.
    """
    return yaml.load(text, Loader=_ConfigLoader)


def _resolve(name: str, node: yaml.Node) -> Any:
    module, _, attribute = name.rpartition(".")
    if any(module == package or module.startswith(f"{package}.") for package in _PACKAGES):
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError:
            found = None
        # A name that the module merely imports, such as subprocess.run, is refused.
        defined_in = getattr(found, "__module__", None)
        if callable(found) and (
            defined_in == module or (module == "pathlib" and str(defined_in).startswith("pathlib"))
        ):
            return found
    raise yaml.constructor.ConstructorError(None, None, f"{name} is not allowed in a config", node.start_mark)


def _object(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    found = _resolve(name, node)
    if not isinstance(found, type) or not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, f"{name} is not a class with fields", node.start_mark)
    made = object.__new__(found)
    yield made
    made.__dict__.update(loader.construct_mapping(node))


def _apply(loader: _ConfigLoader, name: str, node: yaml.Node) -> Any:
    found = _resolve(name, node)
    if not (isinstance(found, type) and issubclass(found, (PurePath, Enum)) and isinstance(node, yaml.SequenceNode)):
        raise yaml.constructor.ConstructorError(
            None, None, f"{name} is neither a path nor an enumeration", node.start_mark
        )
    return found(*loader.construct_sequence(node, deep=True))


def _subscript(loader: _ConfigLoader, node: yaml.Node) -> Any:
    """Subscript of a generic class, such as `VanillaDataManager[SDFDataset]` in nerfstudio's neus-facto."""
    parts = loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else []
    if len(parts) != 2 or not (isinstance(parts[0], type) and issubclass(parts[0], Generic)):
        raise yaml.constructor.ConstructorError(None, None, "not a subscript of a generic class", node.start_mark)
    return parts[0][parts[1]]  # type: ignore[index]


def _tuple(loader: _ConfigLoader, node: yaml.Node) -> tuple:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "a tuple must be a sequence", node.start_mark)
    return tuple(loader.construct_sequence(node, deep=True))


_ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, name, node: _resolve(name, node))
_ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/object:", _object)
_ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/object/apply:", _apply)
_ConfigLoader.add_constructor("tag:yaml.org,2002:python/object/apply:_operator.getitem", _subscript)
_ConfigLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
