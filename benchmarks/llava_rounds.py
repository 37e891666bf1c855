"""A setting of ``llava_shape.py``, what it is built of, and rounds of one way to train with what they took."""

from __future__ import annotations

import gc
import resource
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from llava_cost import Sizes, matrices, now
from llava_models import SHAPES, ByHand, build_llm, build_tower, cached_batches, captions, pixel_batches

from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.team import Solo
from fedcmp.evaluation.losses import EvalData
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.federation import Federation
from fedcmp.federation.here import Here
from fedcmp.federation.loop import run_round, start
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.backbones import DTYPES
from fedcmp.models.blocks import checkpoint_layers
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.optimizer import OptimizerConfig
from fedcmp.seeding import torch_rng
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Trackers
from fedcmp.types import Fetch, Params


class Setting(NamedTuple):
    """What is measured."""

    shape: str = "tiny"
    device: str = "auto"
    dtype: str = "bfloat16"
    slots: int = 2
    clients: int = 4
    rounds: int = 3
    steps: int = 2
    batch: int = 2
    caption: int = 64
    checkpointing: str = "auto"
    pixels: bool = False
    lr: float = 1e-3
    seed: int = 0


def federation_config(setting: Setting) -> FederationConfig:
    """Each client holds up to two batches and uses them again and again."""
    held = min(2, setting.rounds * setting.steps)
    return FederationConfig(
        rounds=setting.rounds,
        local_steps=setting.steps,
        batch_size=setting.batch,
        slots=setting.slots,
        passes=-(-setting.rounds * setting.steps // held),
        evaluate_every=setting.rounds,
    )


def samples_of_client(setting: Setting) -> int:
    """How many samples a client holds."""
    return setting.batch * min(2, setting.rounds * setting.steps)


def optimizer_config(setting: Setting) -> OptimizerConfig:
    """LLaVA's AdamW at a constant rate: these are a few steps."""
    return OptimizerConfig(lr=setting.lr, schedule="constant", warmup=0.0)


class Built(NamedTuple):
    """Models, data and start, on the device."""

    module: ProjectorAlignment
    params: Params
    fetch: Fetch
    sizes: Sizes
    seconds: dict[str, float]


def build(setting: Setting, device: torch.device, checkpointing: bool) -> Built:
    """Everything but the methods."""
    shape, seconds, t0 = SHAPES[setting.shape], {}, now(device)
    llm = build_llm(shape, device, DTYPES[setting.dtype], setting.seed)
    if checkpointing:
        checkpoint_layers(llm.layers)
    seconds["language model"], t1 = now(device) - t0, now(device)
    tower = build_tower(shape, device, setting.seed + 1)
    seconds["vision tower"], t2 = now(device) - t1, now(device)
    count = setting.clients * samples_of_client(setting)
    tokens = captions(count, setting.caption, shape.vocabulary, torch_rng(setting.seed, "captions"))
    fetch = pixel_batches(shape.tower["image_size"], tokens, setting.seed, device)
    if not setting.pixels:
        fetch = cached_batches(fetch, tower, tokens, device)
    seconds["features"] = now(device) - t2
    params = init_params(tower.width, llm.width, ProjectorConfig(), torch_rng(setting.seed, "projector"))
    params = {name: value.to(device) for name, value in params.items()}
    sizes = Sizes(
        tower.num_tokens,
        setting.caption,
        matrices(llm.layers),
        llm.model.get_output_embeddings().weight.numel(),
        sum(value.numel() for value in params.values()),
        matrices(tower),
    )
    module = ProjectorAlignment(tower if setting.pixels else None, llm, params, optimizer_config(setting)).to(device)
    return Built(module, params, fetch, sizes, seconds)


class Runner:
    """One way to train, a round at a time, with what it took."""

    def __init__(self, one_round: Callable[[int], dict[str, float]], device: torch.device) -> None:
        self._one_round, self._device = one_round, device
        self.seconds: list[dict[str, float]] = []
        self.peak = 0

    def go(self, number: int) -> None:
        """One round."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        t0 = now(self._device)
        phases = self._one_round(number)
        self.seconds.append({**phases, "round": now(self._device) - t0 - phases.get("evaluate", 0.0)})
        self.peak = max(self.peak, peak_memory(self._device))

    def typical(self, phase: str) -> float:
        """The median over rounds, without the first where there are more."""
        counted = self.seconds[1:] or self.seconds
        return statistics.median(one[phase] for one in counted)


def peak_memory(device: torch.device) -> int:
    """Most bytes on the GPU since the last reset; on a CPU the process's own peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Federated(Runner):
    """Rounds of a method."""

    def __init__(self, federation: Federation, params: Params, device: torch.device) -> None:
        super().__init__(self._round, device)
        self.federation = federation
        self.state: FederationState = start(params, federation.aggregator)

    def _round(self, number: int) -> dict[str, float]:
        self.state, record = run_round(self.federation, self.state, self.federation.plan.rounds[number])
        return {
            phase: record[f"seconds/{phase}"]
            for phase in ("train", "aggregate", "evaluate")
            if f"seconds/{phase}" in record
        }

    def params(self) -> Params:
        """Where it stands."""
        return self.state.params


class Centralized(Runner):
    """As many rows in the loop written by hand, as many at once as the clients that train together have."""

    def __init__(self, built: Built, federation: Federation, lr: float, device: torch.device) -> None:
        super().__init__(self._round, device)
        self.loop = ByHand(built.module.llm, built.params, lr, built.module.tower)
        self.plan, self.fetch = federation.plan, built.fetch
        config = federation.config
        self.rows = min(config.slots, federation.plan.num_clients) * config.batch_size

    def _round(self, number: int) -> dict[str, float]:
        tasks = self.plan.rounds[number].tasks
        positions = [p for batches in zip(*(task.batches for task in tasks), strict=True) for b in batches for p in b]
        t0 = now(self._device)
        for begin in range(0, len(positions), self.rows):
            self.loop.step(self.fetch(positions[begin : begin + self.rows]))
        return {"train": now(self._device) - t0}

    def params(self) -> Params:
        """Where it stands."""
        return self.loop.params()


def make_federation(setting: Setting, built: Built, device: torch.device, method: str) -> Federation:
    """A federation on the built parts."""
    config, each = federation_config(setting), samples_of_client(setting)
    clients = [tuple(range(client * each, (client + 1) * each)) for client in range(setting.clients)]
    rows = min(setting.slots, setting.clients) * setting.batch
    held_out = EvalData(built.fetch, ("all",) * (setting.clients * each), batch_size=rows)
    return Federation(
        field=Here(built.module, built.fetch, held_out),
        aggregator=build_aggregator(AggregatorConfig(method)),
        plan=plan_run(clients, config, setting.seed),
        config=config,
        optimizer=optimizer_config(setting),
        tracker=Trackers(),
        progress=Progress(enabled=False),
        team=Solo(device),
    )
