"""The rules of the house, read off the source with `ast`: each function lists what breaks one, as "file:line: what".

A package is laid out in layers, lowest first. A module imports its own folder and lower layers; folders of one layer
do not know one another. Imports inside functions and for type checkers count as others do.
"""

import ast
import graphlib
from collections.abc import Iterator

LAYERS = (("system",), ("config",), ("hub",), ("data", "tokenizer", "generator", "evaluation"), ("download",),
          ("training",), ("planning", "reporting"), ("workflows",), ("pipeline",),
          ("benchmarking", "quickstart", "web"))
PUBLIC = ("__init__", "download", "pipeline")  # the modules at the top that are no commands
MAX_TOP, MAX_FILE, MAX_FUNCTION, MAX_MAIN, MAX_ALL = 14, 300, 60, 8, 13_400
PARSING = {"ArgumentParser", "Namespace", "_SubParsersAction"}


def modules(root):
    """{dotted name: path} of a package's files; an __init__ has the name of its folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def place(root, path, node, text):
    return f"{path.relative_to(root.parent)}:{node.lineno}: {text}"


def imports(name, path, known) -> Iterator[tuple[str, ast.stmt]]:
    """(module of the package that is imported, statement), also inside functions and classes."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            base = ".".join(above[:len(above) + 1 - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                for target in (f"{source}.{alias.name}", source):
                    if target in known:
                        yield target, node
                        break


def unit(name):
    """What a layer consists of: a folder, or a module at the top."""
    return name.split(".")[1] if "." in name else "__init__"


def layer(name):
    """Number of a module's layer; commands are above all others."""
    return next((number for number, units in enumerate(LAYERS) if unit(name) in units), len(LAYERS))


def upward_imports(root):
    known = modules(root)
    for name, path in known.items():
        for target, node in imports(name, path, known):
            allowed = unit(name) in ("__init__", unit(target)) or unit(target) == "__init__"
            if not allowed and layer(target) >= layer(name):
                yield place(root, path, node, f"{unit(name)} imports {target}")


def unknown_folders(root):
    for path in sorted(root.iterdir()):
        if path.is_dir() and any(path.rglob("*.py")) and path.name not in sum(LAYERS, ()):
            yield f"{path.relative_to(root.parent)}: no layer has this folder"


def circles(root):
    """The first import circle, if there is one."""
    known = modules(root)
    graph = {name: {target for target, _ in imports(name, path, known)} for name, path in known.items()
             if unit(name) != "__init__"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "circle: " + " <- ".join(error.args[1])


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def unannotated_signatures(root):
    for path in modules(root).values():
        tree = parse(path)
        methods = {id(item) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body
                   if not any(isinstance(mark, ast.Name) and mark.id == "staticmethod"
                              for mark in getattr(item, "decorator_list", []))}
        for node in functions(tree):
            arguments = [*node.args.posonlyargs, *node.args.args][id(node) in methods:]
            arguments += [*node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
            bare = [argument.arg for argument in arguments if argument.annotation is None]
            bare += ["its result"] * (node.returns is None)
            if bare:
                yield place(root, path, node, f"{node.name} does not say the type of {', '.join(bare)}")


def long_code(root):
    total = 0
    for path in modules(root).values():
        lines = path.read_text(encoding="utf-8").count("\n")
        total += lines
        if lines > MAX_FILE:
            yield f"{path.relative_to(root.parent)}: {lines} lines"
        for node in functions(parse(path)):
            if (length := node.end_lineno - node.lineno + 1) > MAX_FUNCTION:
                yield place(root, path, node, f"{node.name} has {length} lines")
    if total > MAX_ALL:
        yield f"{root.name}: {total} lines"


def is_main_guard(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def top_modules(root):
    """At the top are commands and the public names only."""
    paths = sorted(root.glob("*.py"))
    if len(paths) > MAX_TOP:
        yield f"{root.name}: {len(paths)} modules at the top"
    for path in paths:
        if path.stem not in PUBLIC and not any(map(is_main_guard, parse(path).body)):
            yield f"{path.relative_to(root.parent)}: a library"


def busy_commands(root):
    """A command holds its arguments and one call.

    It consists of a docstring, imports, constants, functions that make or read a parser (argparse is in their
    signature), and `main`: up to eight plain statements without branch, loop, `with`, `try`, comprehension or function,
    one of which calls one function of the package. It ends in `run_command(main)`.
    """
    paths = [path for path in root.glob("*.py") if path.stem not in PUBLIC]
    for path in sorted([*paths, *root.rglob("__main__.py")]):
        tree = parse(path)
        for node in tree.body[1:]:
            if isinstance(node, ast.FunctionDef):
                named = {getattr(part, "attr", getattr(part, "id", None)) for part in ast.walk(node.args)}
                named |= {getattr(part, "attr", None) for part in ast.walk(node.returns or ast.Pass())}
                if node.name == "main":
                    yield from busy_main(root, path, tree, node)
                elif not named & PARSING:
                    yield place(root, path, node, f"{node.name} has nothing to do with arguments")
            elif is_main_guard(node):
                if [ast.unparse(line) for line in node.body] != ["run_command(main)"]:
                    yield place(root, path, node, "a command ends in run_command(main)")
            elif not isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign)):
                yield place(root, path, node, f"{type(node).__name__} in a command")


def busy_main(root, path, tree, main):
    plain = (ast.Expr, ast.Assign, ast.AnnAssign, ast.Return, ast.Import, ast.ImportFrom)
    body = main.body[1:] if ast.get_docstring(main) else main.body
    if len(body) > MAX_MAIN:
        yield place(root, path, main, f"main has {len(body)} statements")
    for node in body:
        complex_parts = (ast.comprehension, ast.Lambda)
        if not isinstance(node, plain) or any(isinstance(part, complex_parts) for part in ast.walk(node)):
            yield place(root, path, node, f"main does more than one call: {ast.unparse(node).splitlines()[0]}")
    ours = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
            for alias in node.names if (node.module or "").startswith(root.name)} | {root.name}
    calls = [node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Call)
             and ast.unparse(node.func).split(".")[0] in ours]
    if len(calls) > 1:
        yield place(root, path, main, f"main calls {', '.join(sorted({ast.unparse(node.func) for node in calls}))}")


RULES = (upward_imports, unknown_folders, circles, unannotated_signatures, long_code, top_modules, busy_commands)
