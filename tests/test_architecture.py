"""The house of rooms and layers, held by the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "fedcmp"
LAYERS = {
    name: layer
    for layer, names in {
        -1: "errors credentials",  # below everything: all rooms may raise them
        0: "types measures seeding shipped plain_yaml version staging hashing lifetime locking remember",
        1: "aggregation secure models data optimizer",
        2: "privacy distributed tracking",
        3: "module pictures",
        4: "batches evaluation",
        5: "federation export",
        6: "report config",
        8: "runs",
        9: "sites api compare doctor web",
        10: "cli",
        11: "__main__",
        12: "__init__",  # the front door: names of all rooms, none of which it opens by itself
    }.items()
    for name in names.split()
}
FORBIDDEN = {
    "aggregation": {"lightning", "transformers", "omegaconf", "wandb", "torch.distributed"},
    "models": {"lightning", "omegaconf", "wandb", "torch.distributed"},
    "data": {"transformers", "omegaconf", "wandb", "torch.distributed"},
    "federation": {"omegaconf", "wandb", "torch.distributed", "argparse"},
    "module": {"omegaconf", "wandb", "torch.distributed"},
}
OWN = {"omegaconf": "config", "wandb": "tracking", "torch.distributed": "distributed", "nvflare": "sites"}
"""The one room that uses the package."""
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {".".join(["fedcmp", *path.relative_to(ROOT).with_suffix("").parts]): path for path in FILES}
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def names_used(path: Path) -> set[str]:
    """Modules and names that a file imports, and its dotted expressions."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {"." * node.level + (node.module or ""), *(f"{node.module}.{one.name}" for one in node.names)}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found


def test_imports_are_absolute_and_point_downward() -> None:
    assert len(FILES) > 100
    assert {room(path) for path in FILES} == LAYERS.keys(), "each room and file has a layer"
    wrong = []
    for path in FILES:
        for name in names_used(path):
            there = name.split(".")[1] if name.startswith("fedcmp.") else room(path)
            downward = there in (room(path), "__version__") or LAYERS.get(there, 99) < LAYERS[room(path)]
            if name.startswith(".") or not downward:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """The sorter raises CycleError, which shows the circle."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        graph[module] = set()
        for node in (node for node in TREES[path].body if isinstance(node, ast.ImportFrom)):
            for one in node.names:
                inside = f"{node.module}.{one.name}"
                target = inside if inside in MODULES else node.module
                graph[module] |= {one for one in (target, f"{target}.__init__") if one in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_special_third_parties_stay_in_their_rooms() -> None:
    wrong = []
    for path in FILES:
        packages = FORBIDDEN.get(room(path), set()) | {package for package, own in OWN.items() if room(path) != own}
        for name in names_used(path):
            wrong += [f"{path.relative_to(ROOT)}: {name}" for one in packages if f"{name}.".startswith(f"{one}.")]
    assert wrong == []


def calls_at_import(node: ast.AST) -> Iterator[str]:
    """What runs when a module is imported: not the bodies of functions, nor what is for a script alone."""
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
        children = list(node.orelse)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        children = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
    elif isinstance(node, ast.Lambda):
        children = []
    elif isinstance(node, ast.Call):
        yield ast.unparse(node.func)
    for child in children:
        yield from calls_at_import(child)


def acting(tree: ast.AST) -> list[str]:
    return [
        name for name in calls_at_import(tree) if any(word in name for word in ("manual_seed", "parse_args", "cuda."))
    ]


def test_nothing_acts_at_import() -> None:
    assert [f"{path.relative_to(ROOT)}: {name}" for path, tree in TREES.items() for name in acting(tree)] == []
    assert acting(ast.parse("class A:\n    x = torch.cuda.init()\ndef f(x=torch.cuda.init()):\n    pass"))
    assert not acting(ast.parse("if __name__ == '__main__':\n    p.parse_args()\ndef f():\n    torch.manual_seed(0)"))
