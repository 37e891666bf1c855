"""The task that every framework is given: torch and transformers only, none of fedcmp.

A folder holds ``task.json``, ``data.safetensors`` (features, input_ids, labels), ``start.safetensors`` (the projector)
and names the frozen LLM. Which rows a client uses in which step of which round is written down, so that all do the same
arithmetic: AdamW at a constant rate, fresh in every round, gradients clipped, uniform averaging of equal clients.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = -100
Params = dict[str, Tensor]


class Task:
    """What is to be done, by clients 0 .. K-1 in rounds 0 .. R-1."""

    def __init__(self, folder: str | Path) -> None:
        torch.set_num_threads(1)
        self.folder = Path(folder)
        said = json.loads((self.folder / "task.json").read_text())
        self.clients: int = said["clients"]
        self.rounds: int = said["rounds"]
        self.batches: list[list[list[list[int]]]] = said["batches"]
        """Rows by round, client and step; empty: nothing is trained."""
        self.batch_size: int = said["batch_size"]
        self.lr: float = said["lr"]
        self.clip: float = said["clip"]
        self._said = said
        self._model: Model | None = None

    @property
    def trains(self) -> bool:
        """Whether clients train; if not, they send back what they were given, moved a little."""
        return bool(self.batches)

    def start(self) -> Params:
        """The projector before the first round."""
        return load_file(self.folder / "start.safetensors")

    def model(self) -> Model:
        """The frozen LLM and the projector; loaded once in a process."""
        if self._model is None:
            self._model = Model(self.start(), self._said if self.trains else None)
        return self._model

    def data(self) -> dict[str, Tensor]:
        """Features ``[N, T, d]`` float32, input_ids and labels ``[N, L]``."""
        found = load_file(self.folder / "data.safetensors")
        return {**found, "features": found["features"].float()}

    def train(self, params: Params, client: int, number: int, data: dict[str, Tensor] | None) -> Params:
        """What one client makes of the projector in one round."""
        if not self.trains or data is None:
            return {name: value + 1e-3 * (client + 1) for name, value in params.items()}
        model = self.model()
        model.load(params)
        optimizer = torch.optim.AdamW(model.projector(), lr=self.lr, weight_decay=0.0)
        for rows in self.batches[number][client]:
            model.loss(*(data[name][rows] for name in ("features", "input_ids", "labels"))).backward()
            torch.nn.utils.clip_grad_norm_(model.projector(), self.clip)
            optimizer.step()
            optimizer.zero_grad()
        return model.params()

    @torch.no_grad()
    def loss(self, params: Params) -> float:
        """Nats per caption token over all rows."""
        model, data, total, tokens = self.model(), self.data(), 0.0, 0
        model.load(params)
        for begin in range(0, len(data["labels"]), 64):
            part = {name: value[begin : begin + 64] for name, value in data.items()}
            count = int((part["labels"] != IGNORE).sum())
            total += count * float(model.loss(part["features"], part["input_ids"], part["labels"]))
            tokens += count
        return total / tokens


@functools.cache
def loaded(folder: str) -> tuple[Task, dict[str, Tensor] | None]:
    """A task and its data, once in a process."""
    task = Task(folder)
    return task, task.data() if task.trains else None


class Model(nn.Module):
    """[BOS] <image tokens> caption through a frozen causal LM; only the projector learns."""

    def __init__(self, start: Params, said: dict[str, Any] | None) -> None:
        super().__init__()
        for name in ("linear_1", "linear_2"):
            out, into = start[f"{name}.weight"].shape
            self.add_module(name, nn.Linear(into, out))
        self.llm: Any = None
        if said is not None:
            import transformers

            self.llm = transformers.AutoModelForCausalLM.from_pretrained(said["llm"]).eval().requires_grad_(False)
            self.bos: int | None = said["bos"]
        self.load(start)

    def projector(self) -> list[nn.Parameter]:
        """What is trained."""
        return [value for value in self.parameters() if value.requires_grad]

    def params(self) -> Params:
        """Copies of it, by name."""
        return {name: value.detach().clone() for name, value in self.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def load(self, params: Params) -> None:
        """Takes the projector's values."""
        for name, value in self.named_parameters():
            if value.requires_grad:
                value.copy_(params[name])

    def loss(self, features: Tensor, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Nats per labelled token of a batch."""
        table = self.llm.get_input_embeddings()
        images = self.linear_2(F.gelu(self.linear_1(features)))
        parts = [images, table(input_ids[:, :-1])]
        if self.bos is not None:
            parts.insert(0, table(torch.full((len(input_ids), 1), self.bos)))
        states = self.llm.get_decoder()(inputs_embeds=torch.cat(parts, 1), use_cache=False).last_hidden_state
        places = labels != IGNORE
        logits = self.llm.get_output_embeddings()(states[:, -labels.shape[1] :][places])
        return F.cross_entropy(logits, labels[places])


class Clock:
    """When rounds began, as the server (NVFlare: a client) sees it, and how much memory its process took at most."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def mark(self) -> None:
        """A round begins, or the last one ends."""
        self.marks.append(time.perf_counter())

    def write(self, out: str | Path, params: Params, parts: dict[str, Any] | None = None) -> None:
        """Seconds of each round, the peak, the projector at the end, and the parts of a round where they are known."""
        seconds = [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]
        found = {"seconds": seconds, "server_mib": peak_mib(os.getpid()), **({"parts": parts} if parts else {})}
        save_file({name: value.contiguous() for name, value in params.items()}, Path(out) / "end.safetensors")
        (Path(out) / "found.json").write_text(json.dumps(found))


def peak_mib(pid: int) -> float:
    """The most memory that a process has held: Linux's VmHWM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


class Watch(threading.Thread):
    """Looks at all processes that carry a word in their environment: processor seconds and memory together."""

    def __init__(self, word: str, every: float = 1.0) -> None:
        super().__init__(daemon=True)
        self._word, self._every, self._over = word.encode(), every, threading.Event()
        self._seconds: dict[int, float] = {}
        self._known: dict[int, bool] = {}
        self.peak_mib = 0.0
        self.processes = 0
        self.peaks: dict[int, tuple[float, str]] = {}
        """By process: the most memory that it has held, and its command."""

    def run(self) -> None:
        """Until ``stop``."""
        while not self._over.wait(self._every):
            self.look()

    def look(self) -> None:
        """Once. Memory is proportional set size: pages that processes share count once."""
        total, count = 0.0, 0
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            try:
                pid = int(path.name)
                if pid not in self._known:
                    self._known[pid] = self._word in (path / "environ").read_bytes()
                if not self._known[pid]:
                    continue
                numbers = (path / "stat").read_text().rpartition(")")[2].split()
                self._seconds[pid] = (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                self.peaks[pid] = (peak_mib(pid), words)
                for line in (path / "smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) / 1024
                        count += 1
            except (OSError, ValueError, IndexError):
                continue  # it has ended
        self.peak_mib, self.processes = max(self.peak_mib, total), max(self.processes, count)

    def stop(self) -> float:
        """Ends; processor seconds of all, up to the last look."""
        self.look()
        self._over.set()
        return sum(self._seconds.values())
