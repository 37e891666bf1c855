"""Nothing that is read can run: no code of this repository unpickles, evaluates, or hands a text to a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from fedcmp import plain_yaml

ROOT = Path(__file__).parent.parent
FOLDERS = ("fedcmp", "benchmarks", "examples", "launch", "tests")
FILES = sorted([path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")] + [ROOT / "setup.py"])
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "pty"}
CALLS = {
    "eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "tempfile.mktemp",
    "dist.send_object_list", "dist.broadcast_object_list", "dist.all_gather_object", "dist.gather_object",
    "dist.scatter_object_list", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip
"""What runs, or may run, what it is given; collectives of objects pickle."""
FORBIDDEN_WORDS = ("shell", "allow_pickle", "trust_remote_code")
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader", "_Loader"}
EXCUSED = {
    "tests/test_python_api.py": "calls exec",  # of the examples of a page of this repository
    "tests/docs/test_commands.py": "calls exec",  # the same
    "tests/docs/test_extend.py": "calls exec",  # the same
    "tests/ranks.py": "torch.load without weights_only=True",  # of what its own forked ranks return
    "tests/test_far_device.py": "calls dist.broadcast_object_list",  # of a port, between its own two processes
}


def problems(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.split(".")[0] in MODULES:
                yield f"imports {name}"
        if not isinstance(node, ast.Call):
            continue
        called, words = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
        if called in CALLS:
            yield f"line {node.lineno}: calls {called}"
        if called == "torch.load" and words.get("weights_only") != "True":
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if called == "yaml.load" and words.get("Loader") not in SAFE_LOADERS:
            yield f"line {node.lineno}: yaml.load without a safe loader"
        if called.endswith((".extractall", ".extract")) and words.get("filter") != "'data'":
            yield f"line {node.lineno}: {called} without filter='data'"
        for word in FORBIDDEN_WORDS:
            if words.get(word, "False") != "False":
                yield f"line {node.lineno}: {word}={words[word]}"


def test_nothing_that_is_read_can_run() -> None:
    assert len(FILES) > 200
    wrong = []
    for path in FILES:
        name = str(path.relative_to(ROOT))
        found = problems(path.read_text(encoding="utf-8"))
        wrong += [f"{name}: {one}" for one in found if not one.endswith(EXCUSED.get(name, "nothing"))]
    assert wrong == []


def test_it_would_be_seen() -> None:
    for code in (
        "import pickle", "from joblib import load", "torch.load(path)", "torch.load(path, weights_only=flag)",
        "eval(text)", "yaml.load(text, Loader=yaml.Loader)", "yaml.unsafe_load(text)", "os.system(text)",
        "subprocess.run(text, shell=how)", "np.load(path, allow_pickle=True)", "archive.extractall(folder)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)", "dist.broadcast_object_list(things)",
    ):  # fmt: skip
        assert len(list(problems(code))) == 1, code
    assert not list(problems(
        "torch.load(path, weights_only=True)\nmodel.eval()\nyaml.safe_load(text)\nsubprocess.run(words, shell=False)\n"
        "yaml.load(text, Loader=yaml.BaseLoader)\narchive.extractall(folder, filter='data')\n"
    ))  # fmt: skip


def test_the_loader_of_configs_makes_texts_lists_and_dicts_only() -> None:
    assert not plain_yaml._Loader.yaml_constructors, "no tag makes anything else"
    text = "a: !!python/object/apply:os.system [ls]\nb: !!int 3\nc: 2020-01-01"
    assert plain_yaml.parse_yaml(text, "here") == {"a": ["ls"], "b": "3", "c": "2020-01-01"}
