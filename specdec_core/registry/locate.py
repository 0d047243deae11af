"""Where in the sources a `package.module:Class` stands, found without importing anything."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_MOST_RE_EXPORTS = 8


@dataclass(frozen=True, slots=True)
class Location:
    """A line of a file."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def locate(reference: str) -> Location | None:
    """The line that defines `package.module:Attribute`, followed through re-exports; of a module its first line.

    None if there is no such source file or no such definition in it.
    """
    module, _, attribute = reference.partition(":")
    names = attribute.split(".") if attribute else []
    for _ in range(_MOST_RE_EXPORTS):
        source = _source(module)
        if source is None:
            return None
        if not names:
            return Location(source, 1)
        tree = ast.parse(source.read_bytes(), filename=str(source))
        found = _definition(tree, names)
        if found is not None:
            return Location(source, found.lineno)
        origin = _imported_from(tree, names[0], module, is_package=source.name == "__init__.py")
        if origin is None:
            return None
        module, names[0] = origin
    return None


def _source(module: str) -> Path | None:
    """The module's file. `importlib.util.find_spec` would import the parents of a dotted name; this does not."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return _python_file(spec)


def _python_file(spec: ModuleSpec | None) -> Path | None:
    path = Path(spec.origin) if spec and spec.has_location and spec.origin else None
    return path if path and path.suffix == ".py" and path.is_file() else None


def _definition(tree: ast.Module | ast.ClassDef, names: list[str]) -> ast.stmt | None:
    """The statement in `tree` that binds names[0], then names[1] in that class, and so on. The last binding counts."""
    for statement in reversed(tree.body):
        if isinstance(statement, ast.ClassDef) and statement.name == names[0] and names[1:]:
            return _definition(statement, names[1:])
        if names[0] in _bound(statement) and not names[1:]:
            return statement
    return None


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _imported_from(tree: ast.Module, name: str, module: str, is_package: bool) -> tuple[str, str] | None:
    """(module, name) that `from ... import ...` binds to `name`."""
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    base = module.split(".")
                    base = base[: len(base) - statement.level + is_package] if statement.level else []
                    return ".".join([*base, *([statement.module] if statement.module else [])]), alias.name
    return None
