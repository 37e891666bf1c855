"""fedcmp from a script: the example and its page, the names, and that it is the same training."""

from __future__ import annotations

import ast
import io
import math
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from models.tiny import llm_config, make_processor, make_tokenizer
from PIL import Image
from small import SMALL

import fedcmp
from fedcmp.aggregation import Aggregator, Mean, Sgd
from fedcmp.aggregation.contribution import Cohort
from fedcmp.aggregation.fuse.image_use import ImageUse
from fedcmp.aggregation.parts import Fused, State, Stepped, Update
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


@pytest.fixture(scope="module")
def done(clients: dict[str, list[Pair]], val: list[Pair]) -> Any:
    """What a round led to."""
    return fedcmp.federate(clients, val, rounds=1, settings=QUICK)


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


def test_models_may_be_objects(clients: Mapping[str, list[Pair]], val: list[Pair]) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    eyes = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(image_size=24, patch_size=4, **shape))
    mouth = transformers.AutoModelForCausalLM.from_config(llm_config("llama"))
    tower = fedcmp.VisionTower(eyes, make_processor("clip"), feature_layer=-2)
    llm = fedcmp.LanguageModel.wrap(mouth, make_tokenizer())
    done = fedcmp.federate(clients, val, tower=tower, llm=llm, rounds=1, settings=QUICK)
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

    with pytest.raises(ZeroDivisionError):
        fedcmp.federate(clients, val, rounds=1, settings=QUICK, on_round=lambda one: one.number / 0 > 0)
    with pytest.raises(ConfigError, match="on_round"):
        fedcmp.federate(clients, val, rounds=1, settings=QUICK, on_round=cast(Any, lambda number, loss: 1 / 0))


def test_a_rule_may_be_a_name_a_function_or_put_together(clients: Mapping[str, list[Pair]], val: list[Pair]) -> None:
    def mean(deltas: fedcmp.Params, weights: torch.Tensor) -> fedcmp.Params:
        assert weights.sum() == pytest.approx(1.0)
        return {name: torch.tensordot(weights, value.double(), 1).float() for name, value in deltas.items()}

    methods: list[Any] = ["fedavg", Aggregator(Mean(), Sgd()), Mean(), mean]
    named, together, fuse, function = (
        fedcmp.federate(clients, val, rounds=2, settings=QUICK, aggregator=method).params for method in methods
    )
    for params in (together, fuse):
        assert all(torch.equal(named[name], value) for name, value in params.items())
    for name, value in function.items():
        torch.testing.assert_close(value, named[name], rtol=1e-5, atol=1e-7)
    one, slow = (
        fedcmp.federate(clients, val, rounds=1, settings=QUICK, aggregator=Aggregator(Mean(), Sgd(lr=lr))).records[-1]
        for lr in (1.0, 0.5)
    )
    assert slow["aggregator/step_norm"] == pytest.approx(0.5 * one["aggregator/step_norm"], rel=1e-4)
    with pytest.raises(ConfigError, match="Mean"):
        fedcmp.federate(clients, val, rounds=1, settings=QUICK, aggregator=Mean)  # type: ignore[arg-type]


def test_what_it_led_to_can_be_kept(done: Any, clients: dict[str, list[Pair]], val: list[Pair], tmp_path: Path) -> None:
    done.save(tmp_path / "projector.safetensors")
    assert params_sha256(load_projector(tmp_path / "projector.safetensors")) == params_sha256(done.params)
    settings = {**QUICK, "model.projector.init": str(tmp_path / "projector.safetensors")}
    more = fedcmp.federate(clients, val, rounds=1, settings=settings)
    assert more.records[0]["val/loss"] == pytest.approx(done.records[-1]["val/loss"], rel=1e-6)


def test_captions_are_of_pictures_as_training_saw_them(done: Any, val: list[Pair]) -> None:
    grey, icon = val[0][0].convert("L"), Image.new("LA", (32, 32))
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    said = done.caption([wide, icon])
    assert said == done.caption([grey, Image.new("RGB", (32, 32), "white")]), "what is transparent is white"
    assert [type(one) for one in said] == [str, str]
    for wrong in (Image.new("F", (32, 32)), Image.new("L", (1, 999))):
        with pytest.raises(DataError, match=r"pictures\[1\]"):
            done.caption([val[0][0], wrong])


PICTURE, BIG = Image.new("RGB", (32, 32)), Image.new("RGB", (64, 64))


@dataclass(frozen=True)
class Changed(Mean):
    """A fuse that is wrong."""

    change: Callable[[torch.Tensor], torch.Tensor] = torch.neg

    def fuse(self, cohort: Cohort, params: fedcmp.Params, state: State) -> Fused:
        fused = super().fuse(cohort, params, state)
        delta = cohort.on_server(lambda: {name: self.change(value) for name, value in fused.delta.items()})
        return cohort.on_server(lambda: fused._replace(delta=delta))


@dataclass(frozen=True)
class Returning(Mean):
    """A fuse that returns something else."""

    turn: Callable[[Fused], Any] = tuple

    def fuse(self, cohort: Cohort, params: fedcmp.Params, state: State) -> Fused:
        fused: Fused = cohort.on_server(self.turn, super().fuse(cohort, params, state))
        return fused


@dataclass(frozen=True)
class Recalling(Mean):
    """A fuse that reads what it never kept."""

    def fuse(self, cohort: Cohort, params: fedcmp.Params, state: State) -> Fused:
        return super().fuse(cohort, params, {"sum": state["sum"]})


@dataclass(frozen=True)
class Counting(fedcmp.aggregation.Momentum):
    """A server step whose state is no number of Python's."""

    def step(self, params: fedcmp.Params, update: Update, state: State) -> Stepped:
        return super().step(params, update, state)._replace(state={"rounds": np.float64(1)})


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"clients": {" ": []}}, ConfigError, "clients"),
    ({"clients": {"north": [(PICTURE, "a plain picture")]}}, DataError, r"client 0 \(north\)"),
    ({"clients": {"a": []}}, DataError, "train data set 'a'"),
    ({"clients": {"a": [(PICTURE, "x"), PICTURE]}}, DataError, "train data set 'a', item 1"),
    ({"clients": [[("x", PICTURE)]]}, DataError, "'0', item 0"),
    ({"clients": [[(BIG, "x"), (BIG, "x")]], "settings": {"data.max_pixels": 4000}}, DataError, r"data\.max_pixels"),
    ({"val": [(PICTURE, " ")]}, DataError, "val data set 'val', item 0"),
    ({"rounds": 99}, DataError, r"federation\.rounds=99; .*federation\.rounds=1"),
    ({"settings": {"federation.rounds": 3}}, ConfigError, r"federation\.rounds is said by"),
    ({"settings": {"data.kind": "file"}}, ConfigError, r"data\.kind"),
    ({"aggregator": "krum"}, ConfigError, r"aggregator\.name=krum"),
    ({"aggregator": 3}, ConfigError, "aggregator"),
    ({"aggregator": Mean(), "settings": {"aggregator.server.lr": 1}}, ConfigError, r"\.server\.lr is .* the instance"),
    ({"aggregator": lambda deltas, weights: {"x": weights}}, AggregationError, "the method"),
    ({"aggregator": lambda deltas, weights: None}, AggregationError, r"Own\) returned the delta NoneType"),
    ({"aggregator": lambda deltas, weights: dict.fromkeys(deltas, 0.5)}, AggregationError, r"Own\) .*'float'"),
    ({"aggregator": lambda deltas: deltas}, ConfigError, "aggregator must take"),
    ({"aggregator": Changed(lambda value: value.flatten()[:1])}, AggregationError, r"Changed\) returned"),
    ({"aggregator": Changed(torch.Tensor.double)}, AggregationError, r"Changed\) returned .*float64"),
    ({"aggregator": Changed(lambda value: value * math.nan)}, AggregationError, r"Changed, .*not finite"),
    ({"aggregator": Returning(lambda fused: fused.delta)}, AggregationError, r"Returning\) returned dict"),
    ({"aggregator": Returning(lambda fused: fused._replace(mean=None))}, AggregationError, r"Returning\) .*mean None"),
    (
        {"aggregator": Returning(lambda fused: fused._replace(metrics={"aggregator/x": torch.ones(1)}))},
        AggregationError, r"Returning\) .*aggregator/x",
    ),
    (
        {"aggregator": Returning(lambda fused: fused._replace(state={"cut": [{"at": np.float64(1)}]}))},
        AggregationError, r"Returning\) .*cut .*float64",
    ),
    (
        {"aggregator": Returning(lambda fused: fused._replace(metrics={"round": 7.0}))},
        AggregationError, r"Returning\) .*metric round",
    ),
    ({"aggregator": Recalling()}, AggregationError, "state has no 'sum'"),
    ({"aggregator": fedcmp.Aggregator(ImageUse(Recalling()), Sgd())}, AggregationError, "state has no 'sum'"),
    ({"aggregator": fedcmp.Aggregator(Mean(), Counting())}, AggregationError, r"Counting\) .*rounds .*float64"),
    ({"tower": PICTURE}, ConfigError, "tower"),
    ({"llm": PICTURE}, ConfigError, "llm"),
])  # fmt: skip
def test_what_is_wrong_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    mine = [(PICTURE, "a plain picture"), (PICTURE, "a faint picture")]
    right = {"clients": [mine, mine], "val": mine, "rounds": 1, "settings": {"federation.batch_size": 2}}
    settings = {**right["settings"], **change.get("settings", {})}  # type: ignore[dict-item]
    with pytest.raises(error, match=message):
        fedcmp.federate(**{**right, **change, "settings": settings})


def test_weights_and_cosines_of_ones_own_method_may_be_set() -> None:
    pairs = [(PICTURE, "a plain picture"), (PICTURE, "a faint picture")]
    masked = {"federation.batch_size": 2, "federation.secure": "masks"}
    own = fedcmp.Aggregator(Mean(), fedcmp.aggregation.Momentum(), pairwise=0)
    for method, more in ((own, {}), (Mean(), {"aggregator.pairwise": 0, "aggregator.weights": "uniform"})):
        done = fedcmp.federate([pairs] * 3, pairs, aggregator=method, rounds=1, settings=masked | more)
        assert done.records[-1]["secure/sums"] > 0


def test_what_clients_cannot_record_is_named() -> None:
    @dataclass(frozen=True)
    class Asking(Mean):
        needs = frozenset({"evidense"})

    with pytest.raises(ConfigError, match=r"Asking\.needs.*evidense"):
        fedcmp.Aggregator(Asking(), fedcmp.aggregation.Momentum())


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


@pytest.mark.parametrize("decode", [False, True])
def test_a_corrupted_picture_is_named(decode: bool) -> None:
    with pytest.raises(DataError, match=r"'mine', item 1: .*trunc"):
        fedcmp.federate({"mine": Corrupted(decode)}, [(PICTURE, "a")], rounds=1, settings={"federation.batch_size": 2})


def test_every_public_name_is_there_and_typed() -> None:
    tree = ast.parse(Path(fedcmp.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        one.name: f"{node.module}" for node in block.body if isinstance(node, ast.ImportFrom) for one in node.names
    }
    assert typed == fedcmp.PUBLIC
    for name in fedcmp.PUBLIC:
        assert getattr(fedcmp, name) is not None
        assert name in dir(fedcmp)
    assert (ROOT / "fedcmp" / "py.typed").is_file()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Lightning's: workers, srun, frozen parts
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_code_on_the_page_runs_with_wandb_offline(tmp_path, monkeypatch, capsys) -> None:
    """Whole runs with wandb offline and an export, and a Trainer that trains and validates."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    whole, trainer = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(whole, "docs/python.md", "exec"), {})
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    exec(compile(trainer, "docs/python.md", "exec"), names)
    found = {name: float(value) for name, value in names["trainer"].callback_metrics.items()}
    assert set(found) == {"val/loss", "val/perplexity", "val/accuracy"}
    assert found["val/loss"] < 1.0
    assert "'val/loss': " in capsys.readouterr().out


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
