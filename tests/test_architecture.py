"""The house of rooms and layers, held by the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "fedcmp"
LAYERS = {
    "__init__": 12,  # the front door: names of all rooms, none of which it opens by itself
    "types": 0,
    "errors": -1,  # below everything: all rooms may raise them
    "credentials": -1,
    "measures": 0,
    "seeding": 0,
    "shipped": 0,
    "plain_yaml": 0,
    "fields": 0,
    "version": 0,
    "staging": 0,
    "hashing": 0,
    "lifetime": 0,
    "locking": 0,
    "aggregation": 1,
    "secure": 1,
    "models": 1,
    "data": 1,
    "privacy": 2,
    "distributed": 2,
    "tracking": 2,
    "metrics": 2,
    "module": 3,
    "pictures": 3,
    "batches": 4,
    "evaluation": 4,
    "federation": 5,
    "report": 6,
    "export": 5,
    "config": 6,
    "build": 7,
    "experiment": 8,
    "api": 8,
    "study": 9,
    "doctor": 9,
    "web": 9,
    "cli": 10,
    "__main__": 11,
}
FORBIDDEN = {
    "aggregation": {"lightning", "transformers", "omegaconf", "wandb", "torch.distributed"},
    "models": {"lightning", "omegaconf", "wandb", "torch.distributed"},
    "data": {"transformers", "omegaconf", "wandb", "torch.distributed"},
    "federation": {"omegaconf", "wandb", "torch.distributed", "argparse"},
    "module": {"omegaconf", "wandb", "torch.distributed"},
}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found


def test_every_file_was_found() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    here = room(path)
    assert here in LAYERS, f"{here} has no layer: give it a room in the house"
    for name in imports(path):
        if name.startswith("fedcmp."):
            there = name.split(".")[1]
            if there == "__version__":
                continue
            assert there == here or LAYERS.get(there, 99) < LAYERS[here], f"{path.name} imports {name} from above"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_special_third_parties_stay_in_their_rooms(path: Path) -> None:
    here, used = room(path), imports(path)

    def uses(package: str) -> bool:
        return any(name == package or name.startswith(package + ".") for name in used)

    for package in FORBIDDEN.get(here, set()):
        assert not uses(package), f"{path.name} must not use {package}"
    if here != "config":
        assert not uses("omegaconf"), "only config.py reads YAML"
    if here != "tracking":
        assert not uses("wandb"), "only tracking/wandb.py talks to Weights & Biases"
    if here != "distributed":
        assert not uses("torch.distributed"), "only distributed/ may say torch.distributed"


def at_import(node: ast.AST) -> Iterator[str]:
    """The text of all that runs when a module is imported: not the bodies of functions, nor what is for type checkers
    or for a script alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        parts: list[ast.AST] = list(node.orelse)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        defaults = [*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)]
        parts = [*node.decorator_list, *defaults]
    elif isinstance(node, ast.ClassDef):
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        parts = [*node.decorator_list, *node.bases, *node.keywords, *body]
    elif isinstance(node, ast.AnnAssign):
        parts = [node.value] if node.value is not None else []
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        parts = []
    elif any(isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)) for child in ast.iter_child_nodes(node)):
        parts = list(ast.iter_child_nodes(node))
    else:
        yield ast.unparse(node)
        return
    for part in parts:
        yield from at_import(part)


def acts(source: str) -> list[str]:
    found = list(at_import(ast.parse(source)))
    return [word for word in ("manual_seed", "parse_args", "cuda.") if any(word in text for text in found)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_acts_at_import(path: Path) -> None:
    assert not acts(path.read_text()), f"{path.name} acts at import"


@pytest.mark.parametrize("source", [
    "torch.cuda.init()",
    "X = torch.cuda.device_count()",
    "X: int = torch.cuda.device_count()",
    "if DEBUG:\n    torch.cuda.init()",
    "if torch.cuda.is_available():\n    pass",
    "if TYPE_CHECKING:\n    pass\nelse:\n    torch.cuda.init()",
    "try:\n    pass\nexcept OSError:\n    X = torch.cuda.device_count()",
    "with torch.cuda.device(0):\n    pass",
    "for _ in range(2):\n    torch.cuda.init()",
    "match X:\n    case 1:\n        torch.cuda.init()",
    "class A:\n    x: int = torch.cuda.device_count()",
    "@torch.cuda.amp.custom_fwd\ndef f():\n    pass",
    "def f(x=torch.cuda.device_count()):\n    pass",
])  # fmt: skip
def test_what_acts_at_import_is_seen(source: str) -> None:
    assert acts(source) == ["cuda."]


@pytest.mark.parametrize("source", [
    "if TYPE_CHECKING:\n    from torch.cuda.amp import GradScaler",
    "if __name__ == '__main__':\n    parser.parse_args()",
    "def f():\n    torch.manual_seed(0)",
    "class A:\n    'Asks torch.cuda.device_count.'\n    def f(self, x: torch.cuda.Event):\n        torch.cuda.init()",
    "EVENT: torch.cuda.Event | None = None",
])  # fmt: skip
def test_what_waits_for_a_call_may_be_there(source: str) -> None:
    assert not acts(source)
