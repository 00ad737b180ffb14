"""Flattens a program and everything that it uses from the package into one plain file.

The file has only the functions, classes and constants that the program reaches, each after those that it
uses. A name that two modules define is prefixed with its module's. Comments are lost, docstrings stay.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

Key = tuple[str, str]  # module and name
Resolve = Callable[[str, str | None], str | None]  # (name, attribute of it) → what to write instead


class Module(NamedTuple):
    """The meaning of a module's names: its own definitions, names from the package, other imports."""

    own: dict[str, ast.stmt]
    package: dict[str, Key]
    others: dict[str, str]


def flatten(program: str, source: Path, package: str = "celo2") -> str:
    """Returns a program's source with its imports from a package replaced by the definitions.

    Args:
        program: The source, which imports from the package by `from … import …`.
        source: The folder that holds the package.
        package: The package's name.

    Raises:
        ValueError: A name is not found, or two definitions cannot be told apart by their modules.
    """
    return _Flattener(source, package).run(program)


class _Flattener:
    def __init__(self, source: Path, package: str) -> None:
        self.source, self.package = source, package
        self.read = cache(self._read)
        self.found: dict[Key, ast.stmt] = {}  # in the order in which they are written
        self.open: list[Key] = []
        self.qualified: set[Key] = (
            set()
        )  # written as attributes of their modules, so that locals may shadow them
        self.imports = {"from typing import Any"}

    def run(self, program: str) -> str:
        tree = ast.parse(program)
        main = self._describe(tree)
        for node in tree.body:
            self._visit(main, node)
        taken = {*main.own, *main.others} | {line.split()[-1].split(".")[0] for line in self.imports}
        names = self._choose_names(tree, taken)
        known = {*main.own, *names.values(), *dir(builtins), *(line.split()[-1] for line in self.imports)}
        body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
        documented = isinstance(body[0], ast.Expr)
        parts = [
            self._write(self.read(module), node, names, known) for (module, _), node in self.found.items()
        ]
        parts += [self._write(main, node, names, known) for node in body[documented:]]
        head = [f'"""{ast.get_docstring(tree)}\n"""'] if documented else []
        lines = ["from __future__ import annotations", *sorted(self.imports)]
        return "\n\n\n".join([*head, "\n".join(lines), *parts]) + "\n"

    def _read(self, name: str) -> Module:
        path = self.source.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return self._describe(ast.parse(path.read_text("utf-8")))

    def _describe(self, tree: ast.Module) -> Module:
        module = Module({}, {}, {})
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                module.own[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                module.own.update({target.id: node for target in targets if isinstance(target, ast.Name)})
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self._describe_import(module, node)
        return module

    def _describe_import(self, module: Module, node: ast.Import | ast.ImportFrom) -> None:
        origin = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            name = alias.asname or alias.name
            if origin.split(".")[0] == self.package:
                module.package[name] = (origin, alias.name)
            elif origin != "__future__":
                renamed = f" as {alias.asname}" if alias.asname else ""
                start = f"from {origin} " if origin else ""
                module.others[name.split(".")[0]] = f"{start}import {alias.name}{renamed}"

    def _find(self, module: Module, name: str, attribute: str | None) -> Key | None:
        """Returns the package's definition that a name, or an attribute of a module, refers to."""
        if name not in module.package:
            return None
        origin, inner = module.package[name]
        if self._is_module(f"{origin}.{inner}"):
            return None if attribute is None else self._locate(f"{origin}.{inner}", attribute)
        return self._locate(origin, inner)

    def _locate(self, origin: str, name: str) -> Key:
        module = self.read(origin)
        if name in module.own:
            return origin, name
        key = self._find(module, name, None)
        if key is None:
            raise ValueError(f"{origin} has no {name}.")
        return key

    def _is_module(self, name: str) -> bool:
        path = self.source.joinpath(*name.split("."))
        return path.is_dir() or path.with_suffix(".py").exists()

    def _visit(self, module: Module, node: ast.stmt, home: str = "") -> None:
        """Finds what a statement uses, directly and indirectly, before the statement itself."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            return
        for name, attribute in _names_in(node):
            key = (home, name) if home and name in module.own else self._find(module, name, attribute)
            if key is not None and self._find(module, name, None) is None and key[1] != name:
                self.qualified.add(key)
            if key is not None and key not in self.found and self.read(key[0]).own[key[1]] is not node:
                self._add(key)
        used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}  # in annotations too
        self.imports |= {line for name, line in module.others.items() if name in used}

    def _add(self, key: Key) -> None:
        if key in self.open:
            return  # a cycle of functions, whose order does not matter
        self.open.append(key)
        module = self.read(key[0])
        self._visit(module, module.own[key[1]], key[0])
        self.found[self.open.pop()] = module.own[key[1]]

    def _choose_names(self, tree: ast.Module, own: set[str]) -> dict[Key, str]:
        names: dict[Key, str] = {}
        plain = [name for _, name in self.found]
        taken = _local_names([*tree.body, *self.found.values()])
        for module, name in self.found:
            parts = module.split(".")
            if plain.count(name) == 1 and (module, name) not in self.qualified and name not in own:
                names[module, name] = name
                continue
            choices = [f"{'_'.join(parts[-depth:])}_{name.strip('_')}" for depth in (1, 2)]
            free = [choice for choice in choices if choice not in {*own, *taken, *plain, *names.values()}]
            if not free:
                raise ValueError(f"{module}.{name} has no name of its own among the others.")
            names[module, name] = free[0]
        return names

    def _write(self, module: Module, node: ast.stmt, names: dict[Key, str], known: set[str]) -> str:
        home = next((name for (name, _), found in self.found.items() if found is node), "")

        def resolve(name: str, attribute: str | None) -> str | None:
            key = (home, name) if home and name in module.own else self._find(module, name, attribute)
            return None if key is None else names.get(key)

        copy = _Rename(resolve).visit(ast.parse(ast.unparse(node)).body[0])
        return ast.unparse(ast.fix_missing_locations(_Annotations(known).visit(copy)))


def _local_names(nodes: list[ast.stmt]) -> set[str]:
    """Returns the names of arguments, variables and functions in any scope."""
    found = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def _names_in(node: ast.stmt) -> Iterator[tuple[str, str | None]]:
    """Yields a statement's names that are not local to its functions, with their first attribute."""
    used: list[tuple[str, str | None]] = []
    copy = ast.parse(ast.unparse(node)).body[0]  # a class without annotations would be a different one
    _Rename(lambda name, attribute: used.append((name, attribute))).visit(copy)
    yield from used


class _Annotations(ast.NodeTransformer):
    """Writes `Any` for annotations that contain unknown names; annotations are not evaluated."""

    def __init__(self, known: set[str]) -> None:
        self.known = known

    def visit(self, node: ast.AST) -> ast.AST:
        for field in ("annotation", "returns"):
            value = getattr(node, field, None)
            if value is not None and any(
                isinstance(n, ast.Name) and n.id not in self.known for n in ast.walk(value)
            ):
                setattr(node, field, ast.Name("Any", ast.Load()))
        return super().visit(node)


class _Rename(ast.NodeTransformer):
    """Renames names that are not local to a function, except in annotations, which are not evaluated."""

    def __init__(self, resolve: Resolve) -> None:
        self.resolve, self.local = resolve, [set()]

    def _is_local(self, name: str) -> bool:
        return any(name in names for names in self.local[1:])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if len(self.local) == 1:
            node.name = self.resolve(node.name, None) or node.name
        return self._visit_scope(node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return self._visit_scope(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = self.resolve(node.name, None) or node.name
        self.local.append({n.name for n in node.body if isinstance(n, ast.FunctionDef)})
        node.bases, node.decorator_list = [
            list(map(self.visit, n)) for n in (node.bases, node.decorator_list)
        ]
        node.body = [self.visit(child) for child in node.body]
        self.local.pop()
        return node

    def _visit_scope(self, node: ast.FunctionDef | ast.Lambda) -> ast.AST:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
        stored = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        inner = [n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef) and n is not node]
        self.local.append({argument.arg for argument in arguments} | set(stored) | set(inner))
        if isinstance(node, ast.FunctionDef):
            returns, node.returns = node.returns, None
            self.generic_visit(node)
            node.returns = returns
        else:
            self.generic_visit(node)
        self.local.pop()
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.target = self.visit(node.target)
        node.value = node.value and self.visit(node.value)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and not self._is_local(node.value.id):
            instead = self.resolve(node.value.id, node.attr)
            if instead is not None and self._of_module(node.value.id):
                return ast.Name(instead, node.ctx)
        return self.generic_visit(node)

    def _of_module(self, name: str) -> bool:
        return self.resolve(name, None) is None

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if not self._is_local(node.id):
            node.id = self.resolve(node.id, None) or node.id
        return node
