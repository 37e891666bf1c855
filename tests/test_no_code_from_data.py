"""Nothing that is read can run: no code of this repository unpickles, evaluates, or hands a text to a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

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
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader", "_Values", "_Words"}
"""The last two are those of fedcmp/plain_yaml.py, which a test holds to be of the others' kind."""
EXCUSED = {
    "tests/test_python_api.py": "calls exec",  # of the examples of a page of this repository
    "tests/export/test_export_run.py": "calls exec",  # of the model card that it has just written
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(path: Path) -> None:
    found = list(problems(path.read_text(encoding="utf-8")))
    excused = EXCUSED.get(str(path.relative_to(ROOT)), "nothing")
    assert [one for one in found if not one.endswith(excused)] == []


@pytest.mark.parametrize("code", [
    "import pickle", "from joblib import load", "torch.load(path)", "torch.load(path, weights_only=False)",
    "torch.load(path, weights_only=flag)", "eval(text)", "exec(text)", "yaml.load(text)",
    "yaml.load(text, Loader=yaml.Loader)", "yaml.unsafe_load(text)", "subprocess.run(text, shell=True)",
    "subprocess.run(text, shell=how)", "os.system(text)", "np.load(path, allow_pickle=True)",
    "AutoModel.from_pretrained(path, trust_remote_code=True)", "dist.broadcast_object_list(things)",
    "archive.extractall(folder)", "tempfile.mktemp()",
])  # fmt: skip
def test_it_would_be_seen(code: str) -> None:
    assert len(list(problems(code))) == 1


def test_what_is_safe_is_not_complained_of() -> None:
    assert not list(problems(
        "torch.load(path, weights_only=True)\nmodel.eval()\nyaml.safe_load(text)\nsubprocess.run(words, shell=False)\n"
        "yaml.load(text, Loader=yaml.BaseLoader)\narchive.extractall(folder, filter='data')\n"
    ))  # fmt: skip
    assert len(FILES) > 300


def test_the_loaders_of_configs_make_what_the_safe_ones_make() -> None:
    for ours, safe in ((plain_yaml._Values, yaml.SafeLoader), (plain_yaml._Words, yaml.BaseLoader)):
        assert issubclass(ours, safe)
        own = {tag for tag, make in ours.yaml_constructors.items() if make is not safe.yaml_constructors.get(tag)}
        assert own <= {"tag:yaml.org,2002:int"}
        assert ours.yaml_multi_constructors == safe.yaml_multi_constructors
