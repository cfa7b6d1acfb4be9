# SPDX-License-Identifier: Apache-2.0
"""Structure of the package: no module imports from a higher layer, no modules import each other, none is too long, and folders list their modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pmni_nerfstudio"
LAYERS = (
    ("errors", "interrupts", "allocator", "chunks", "threads", "startup_time"),
    ("geometry",),
    ("data",),
    ("integration", "fields"),
    ("registration",),
    ("importers", "photometric"),
    ("model",),
    ("training",),
    ("export",),
    ("evaluation", "baselines", "material"),
    ("report", "studies", "viewer", "synth", "objects"),
    ("sequences", "large_scenes"),
    ("commands",),
    ("pmni_pipeline", "pmni_config", "cli", "__main__"),
)
"""Folders and modules, the lowest layer first."""
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
MAX_LINES = 400


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules of the package that a module imports, also inside functions, with the lines. Imports for types are exempt."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield (submodule if submodule in MODULES else node.module), node.lineno
        yield from imports_of(node)


IMPORTS = {
    name: list(imports_of(ast.parse(path.read_text(encoding="utf-8"), str(path)))) for name, path in MODULES.items()
}


def layer_of(module: str) -> int:
    return LAYER[module.split(".")[1]]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    reachable: dict[str, set[str]] = {}
    for start, direct in graph.items():
        seen, waiting = set(), list(direct)
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph[module]
        reachable[start] = seen
    groups = {frozenset(m for m in reachable[n] if n in reachable[m]) for n in graph if n in reachable[n]}
    return sorted(sorted(group) for group in groups)


def test_every_folder_has_a_layer():
    assert {module.split(".")[1] for module in MODULES if module.count(".")} == set(LAYER)


def test_relative_imports_are_not_used():
    for path in MODULES.values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level], path


def test_no_import_from_a_higher_layer():
    upward = [
        f"{MODULES[module].relative_to(PACKAGE.parent)}:{line} imports {other}"
        for module, found in IMPORTS.items()
        for other, line in found
        if module.count(".") and other.count(".") and layer_of(other) > layer_of(module)
    ]
    assert not upward, "\n".join(upward)


def test_no_circles():
    assert circles({module: {other for other, _ in found} for module, found in IMPORTS.items()}) == []


def test_a_circle_and_an_import_inside_a_function_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]
    source = "def f():\n    from pmni_nerfstudio.data import scene\nif TYPE_CHECKING:\n    import pmni_nerfstudio.cli\n"
    assert list(imports_of(ast.parse(source))) == [("pmni_nerfstudio.data.scene", 2)]


def test_synthetic_scenes_are_used_by_commands_alone():
    users = {
        module for module, found in IMPORTS.items() for other, _ in found if other.startswith("pmni_nerfstudio.synth")
    }
    assert all(user.split(".")[1] in ("synth", "commands") for user in users), users


def test_lists_of_modules_are_complete():
    """A folder's docstring that lists modules lists all of them, and no others."""
    listed = {}
    for path in PACKAGE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        names = [name for line in re.findall(r"^ *([a-z0-9_, ]+):", text, re.MULTILINE) for name in line.split(", ")]
        listed[path.parent] = {name.strip() for name in names}
    assert sum(map(bool, listed.values())) >= 10
    for folder, names in listed.items():
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        if names & modules:
            folders = {path.name for path in folder.iterdir() if path.is_dir()}
            assert names - folders == modules, folder


def test_no_module_is_too_long():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > MAX_LINES} == {}
