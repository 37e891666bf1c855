"""fedcmp from a script: the example and its page, the names, and that it is the same training."""

from __future__ import annotations

import ast
import io
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models.tiny import llm_config, make_processor, make_tokenizer
from PIL import Image
from small import SMALL

import fedcmp
from fedcmp.aggregation import Aggregator, Mean, Sgd
from fedcmp.data.scenes import make_scene, render
from fedcmp.errors import AggregationError, ConfigError, DataError
from fedcmp.federation.checkpoint import load_projector, params_sha256
from fedcmp.runs.data import read_data

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "own_everything.py"
Pair = tuple[Image.Image, str]
QUICK: dict[str, object] = {"federation.batch_size": 4, "optimizer.lr": 1e-2}


def pairs(camera: str, count: int, pool: str = "train") -> list[Pair]:
    scenes = [make_scene(pool, camera, index) for index in range(count)]
    return [(render(scene), scene.caption) for scene in scenes]


@pytest.fixture(scope="module")
def clients() -> dict[str, list[Pair]]:
    return {camera: pairs(camera, 8) for camera in ("plain", "faint", "noisy")}


@pytest.fixture(scope="module")
def val() -> list[Pair]:
    return pairs("plain", 4, "val")


def test_the_example_learns_and_stops_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(EXAMPLE))
    done = names["main"](*names["load_models"]())
    losses = [one["val/loss"] for one in done.records]
    assert losses[0] > 1.5
    assert losses[-1] < 0.5 < losses[-2]
    assert done.rounds < 8, "look() ended it"
    said = capsys.readouterr().out
    assert f"round {done.rounds} of 8: validation loss {losses[-1]:.3f}" in said
    assert re.search(r"said: a plain picture of .*\ntrue: a plain picture of ", said)


def test_the_example_takes_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random CLIP and Llama as objects; what is said of random models is only that the projector fits them."""
    names = runpy.run_path(str(EXAMPLE))
    torch.manual_seed(0)
    options = {"intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}
    eyes = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(hidden_size=16, image_size=24, **options))
    mouth = transformers.AutoModelForCausalLM.from_config(llm_config("llama"))
    tower = fedcmp.VisionTower(eyes, make_processor("clip"), feature_layer=-2)
    llm = fedcmp.LanguageModel.wrap(mouth, make_tokenizer())
    short = names["Scenes"]

    class Fewer(short):  # type: ignore[misc, valid-type]
        def __init__(self, pool: str, camera: str, count: int) -> None:
            super().__init__(pool, camera, min(count, 128))

    names["main"].__globals__["Scenes"] = Fewer
    done = names["main"](tower, llm)
    assert done.rounds == 8
    assert done.params["linear_1.weight"].shape == (32, 16)
    assert not any(parameter.requires_grad for parameter in [*eyes.parameters(), *mouth.parameters()])


def test_it_is_the_training_of_the_commands(tmp_path: Path) -> None:
    """The samples of a config's clients as data sets: the same bits."""
    words = [*SMALL, "aggregator=fedcmp", "federation.rounds=2", "run.figures=false", f"run.dir={tmp_path / 'run'}"]
    config = fedcmp.load_config(None, words)
    summary = fedcmp.train(config)
    data = read_data(config)

    def given(positions: tuple[int, ...]) -> list[Pair]:
        samples = [data.train[position] for position in positions]
        return [(data.source.image(sample), sample.caption) for sample in samples]

    held = {
        domain: [(data.source.image(one), one.caption) for one in data.val if one.domain == domain]
        for domain in sorted({one.domain for one in data.val})
    }
    settings = {"federation.batch_size": config.federation.batch_size}
    done = fedcmp.federate([given(one) for one in data.split.clients], held, rounds=2, settings=settings)
    assert params_sha256(done.params) == summary["projector_sha256"]
    assert done.records[-1]["val/loss"] == pytest.approx(summary["val/loss"]["end"], rel=1e-6)
    assert {f"val/loss/{domain}" for domain in held} <= set(done.records[-1])


def test_a_callback_sees_every_round_and_may_end_it(clients: Mapping[str, list[Pair]], val: list[Pair]) -> None:
    seen: list[fedcmp.Round] = []

    def look(one: fedcmp.Round) -> bool:
        seen.append(one)
        return one.number == 2

    settings = {**QUICK, "federation.evaluate_every": 2, "federation.local_steps": 1, "federation.passes": 4}
    done = fedcmp.federate(clients, val, rounds=4, settings=settings, on_round=look)
    assert [(one.number, one.of) for one in seen] == [(1, 4), (2, 4)]
    assert done.rounds == 2
    assert all(torch.equal(seen[1].params[name], value) for name, value in done.params.items())
    assert seen[0].loss == done.records[0]["val/loss"], "the first round is not evaluated: the loss before it"
    assert seen[1].loss == done.records[2]["val/loss"] < seen[0].loss
    assert seen[1].record["client/2/accepted"] is True

    def broken(one: fedcmp.Round) -> bool:
        raise ZeroDivisionError("a mistake of the script's")

    with pytest.raises(ZeroDivisionError, match="a mistake of the script's"):
        fedcmp.federate(clients, val, rounds=1, settings=QUICK, on_round=broken)


def test_a_rule_may_be_a_name_a_function_or_put_together(clients: Mapping[str, list[Pair]], val: list[Pair]) -> None:
    def mean(deltas: fedcmp.Params, weights: torch.Tensor) -> fedcmp.Params:
        assert weights.sum() == pytest.approx(1.0)
        return {name: torch.tensordot(weights, value.double(), 1).float() for name, value in deltas.items()}

    methods: list[Any] = ["fedavg", Aggregator(Mean(), Sgd()), mean]
    named, together, function = (
        fedcmp.federate(clients, val, rounds=2, settings=QUICK, aggregator=method).params for method in methods
    )
    assert all(torch.equal(named[name], value) for name, value in together.items())
    for name, value in function.items():
        torch.testing.assert_close(value, named[name], rtol=1e-5, atol=1e-7)
    one, slow = (
        fedcmp.federate(clients, val, rounds=1, settings=QUICK, aggregator=Aggregator(Mean(), Sgd(lr=lr))).records[-1]
        for lr in (1.0, 0.5)
    )
    assert slow["aggregator/step_norm"] == pytest.approx(0.5 * one["aggregator/step_norm"], rel=1e-4)


def test_what_it_led_to_can_be_kept(clients: Mapping[str, list[Pair]], val: list[Pair], tmp_path: Path) -> None:
    done = fedcmp.federate(clients, val, rounds=1, settings=QUICK)
    done.save(tmp_path / "projector.safetensors")
    kept = load_projector(tmp_path / "projector.safetensors")
    assert params_sha256(kept) == params_sha256(done.params)
    said = done.caption([val[0][0], val[1][0].convert("L")], max_tokens=12)
    assert len(said) == 2
    assert all(isinstance(one, str) for one in said)
    settings = {**QUICK, "model.projector.init": str(tmp_path / "projector.safetensors")}
    more = fedcmp.federate(clients, val, rounds=1, settings=settings)
    assert more.records[0]["val/loss"] == pytest.approx(done.records[-1]["val/loss"], rel=1e-6)


def test_captions_are_of_pictures_as_training_saw_them(clients: Mapping[str, list[Pair]], val: list[Pair]) -> None:
    done = fedcmp.federate(clients, val, rounds=1, settings=QUICK)
    seen = []

    class Spy:
        def preprocess(self, pictures: list[Image.Image]) -> torch.Tensor:
            seen.extend(pictures)
            return done.tower.preprocess(pictures)

        look = staticmethod(done.tower.look)

    grey = np.asarray(val[0][0].convert("L"))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    replace(done, tower=Spy()).caption([wide], max_tokens=2)  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(seen[0].convert("L")), grey)
    icon = Image.new("LA", (32, 32))
    replace(done, tower=Spy()).caption([icon], max_tokens=2)  # type: ignore[arg-type]
    assert seen[1].getcolors() == [(1024, (255, 255, 255))], "what is transparent is white"
    with pytest.raises(DataError, match=r"pictures\[1\] cannot be used: its pixels are floats"):
        done.caption([val[0][0], Image.new("F", (32, 32))])
    with pytest.raises(DataError, match=r"pictures\[0\] cannot be used: .*1 x 999"):
        done.caption([Image.new("L", (1, 999))])
    with pytest.raises(DataError, match=r"item 0: .*32 x 32 .*data\.max_pixels=1,000"):
        fedcmp.federate(clients, val, rounds=1, settings={**QUICK, "data.max_pixels": 1000})


PICTURE = Image.new("RGB", (32, 32))


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"clients": []}, ConfigError, r"clients: expected at least one data set, got none"),
    ({"clients": {" ": []}}, ConfigError, r"clients: .*printable"),
    ({"clients": {"north": [(PICTURE, "a plain picture")]}}, DataError, r"client 0 \(north\) has 1 samples"),
    ({"clients": {"a": []}}, DataError, r"the train data set 'a' is empty"),
    ({"clients": {"a": [(PICTURE, "x"), PICTURE]}}, DataError,
     r"the train data set 'a', item 1: expected \(PIL picture, caption.*got Image"),
    ({"clients": [[("x", PICTURE)]]}, DataError, r"'0', item 0: expected .*got tuple"),
    ({"val": [(PICTURE, " ")]}, DataError, r"the val data set 'val', item 0: expected \(PIL picture, caption"),
    ({"rounds": 0}, ConfigError, r"federation\.rounds must be .* >= 1, got 0"),
    ({"rounds": 99}, DataError, r"federation\.rounds=99; set federation\.rounds=1"),
    ({"settings": {"federation.rounds": 3}}, ConfigError, r"settings: federation\.rounds is said by the argument rou"),
    ({"settings": {"aggregator": "krum"}}, ConfigError, r"settings: aggregator is said by the argument aggregator"),
    ({"settings": {"data.kind": "file"}}, ConfigError, r"settings: data\.kind cannot be said here;"),
    ({"settings": {"optimiser.lr": 1}}, ConfigError, r"optimiser\.lr cannot be said here; did you mean \"optimizer\""),
    ({"settings": {"optimizer.lrr": 1}}, ConfigError, r"unknown key `optimizer\.lrr`; did you mean \"lr\""),
    ({"aggregator": "fedavgg"}, ConfigError, r"aggregator\.name: .* 'fedavgg'; did you mean \"fedavg\""),
    ({"aggregator": "krum"}, ConfigError, r"aggregator\.name=krum needs at least"),
    ({"aggregator": 3}, ConfigError, r"aggregator must be the name of a method, .* got int"),
    ({"aggregator": lambda deltas, weights: {"x": weights}}, AggregationError, r"the method returned \{'x': \(2,\)\}"),
    ({"tower": PICTURE}, ConfigError, r"tower must be a VisionTower\(model, image processor\), got Image"),
    ({"llm": PICTURE}, ConfigError, r"llm must be a LanguageModel\.wrap\(model, tokenizer\), got Image"),
])  # fmt: skip
def test_what_is_wrong_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    mine = [(PICTURE, "a plain picture"), (PICTURE, "a faint picture")]
    right = {"clients": [mine, mine], "val": mine, "rounds": 1, "settings": {"federation.batch_size": 2}}
    settings = {**right["settings"], **change.get("settings", {})}  # type: ignore[dict-item]
    with pytest.raises(error, match=message):
        fedcmp.federate(**{**right, **change, "settings": settings})


class Corrupted:
    """Pictures of files, the second of which is cut; opened when they are asked for, as data sets of torch do it."""

    def __init__(self, decode: bool) -> None:
        buffer = io.BytesIO()
        Image.effect_noise((32, 32), 90).save(buffer, "PNG")
        self.decode, self.content = decode, buffer.getvalue()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Pair:
        picture = Image.open(io.BytesIO(self.content[: len(self.content) // (1 + index)]))
        return (picture.convert("RGB") if self.decode else picture), "a plain picture"


@pytest.mark.parametrize(("decode", "message"), [
    (False, r"the train data set 'mine', item 1: .*trunc"),
    (True, r"the train data set 'mine', item 1: .*trunc"),
])  # fmt: skip
def test_a_corrupted_picture_is_named(decode: bool, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fedcmp.federate(
            {"mine": Corrupted(decode)},
            [(PICTURE, "a")],
            rounds=1,
            settings={"federation.batch_size": 2},
            progress=False,
        )


def test_importing_fedcmp_imports_nothing_heavy() -> None:
    code = "import fedcmp, sys; print(sorted({'torch', 'numpy', 'transformers', 'omegaconf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="module 'fedcmp' has no attribute 'federat'"):
        fedcmp.federat  # type: ignore[attr-defined]  # noqa: B018


def test_every_public_name_is_there_typed_and_on_the_page() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)`", page[page.index("## The names") :].partition("|---|---|")[2].replace("|", " ")))
    tree = ast.parse(Path(fedcmp.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        one.name: f"{node.module}" for node in block.body if isinstance(node, ast.ImportFrom) for one in node.names
    }
    assert typed == fedcmp.PUBLIC
    assert listed == set(fedcmp.PUBLIC)
    for name in fedcmp.PUBLIC:
        assert getattr(fedcmp, name) is not None
        assert name in dir(fedcmp)
    assert (ROOT / "fedcmp" / "py.typed").is_file()


def run_code_of_the_page(number: int) -> dict[str, Any]:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(codes) == 2
    names: dict[str, Any] = {}
    exec(compile(codes[number], "docs/python.md", "exec"), names)
    return names


def test_whole_runs_on_the_page_run_with_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_code_of_the_page(0)
    assert (tmp_path / "exported" / "model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Lightning's: workers, srun, frozen parts
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_trainer_on_the_page_trains_and_validates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_code_of_the_page(1)
    found = {name: float(value) for name, value in names["trainer"].callback_metrics.items()}
    assert set(found) == {"val/loss", "val/perplexity", "val/accuracy"}
    assert found["val/loss"] < 1.0
    assert "'val/loss': " in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_is_typed_strictly() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(EXAMPLE)]  # launch/check: ours
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


SCRIPT = """
import sys
import fedcmp
from fedcmp.data.scenes import make_scene, render
from fedcmp.federation.checkpoint import params_sha256

def pairs(camera, count, pool="train"):
    scenes = [make_scene(pool, camera, index) for index in range(count)]
    return [(render(scene), scene.caption) for scene in scenes]

clients = {camera: pairs(camera, 8) for camera in ("plain", "faint", "noisy")}
settings = {"federation.batch_size": 4, "run.device": "cpu", "federation.passes": 2}
done = fedcmp.federate(
    clients, pairs("plain", 4, "val"), rounds=3, settings=settings, on_round=lambda one: one.number == 2
)
sys.stdout.write(f"projector {params_sha256(done.params)}\\n")
"""


@pytest.mark.slow
def test_two_ranks_give_the_same_bits_and_stop_together(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    def said(*words: str) -> list[str]:
        done = subprocess.run([*words, str(script)], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return re.findall(r"projector (\w+)", done.stdout)

    (alone,) = said(sys.executable)
    assert said(*launcher) == [alone, alone]
