"""Every reported metric, declared once: for summaries, pages and tables. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """What a number in metrics.jsonl (``val/loss``) or in summary.json (``test/loss``: ``loss`` of ``test``) is."""

    key: str
    title: str
    unit: str = ""
    """``share`` in [0, 1], ``seconds``, ``bytes``, ...; empty: a pure number."""
    better: str = ""
    """``lower`` or ``higher``; empty: neither."""

    @property
    def heading(self) -> str:
        """The title with a capital letter."""
        return self.title[:1].upper() + self.title[1:]


NATS = "nats per token"
_TABLE = (
    Metric("val/loss", "validation loss", NATS, "lower"),
    Metric("val/worst_domain", "worst domain", NATS, "lower"),
    Metric("train/loss", "training loss", NATS, "lower"),
    Metric("test/loss", "test loss", NATS, "lower"),
    Metric("test/loss_shuffled", "shuffled pictures", NATS),
    Metric("test/image_use", "image use", NATS, "higher"),
    Metric("test/worst_domain", "worst domain", NATS, "lower"),
    Metric("test/token_accuracy", "token accuracy", "share", "higher"),
    Metric("test/cider", "CIDEr-D", "of 10", "higher"),
    Metric("test/probe", "yes/no right", "share", "higher"),
    Metric("test/digits_named", "digits named right", "share", "higher"),
    Metric("privacy/epsilon", "epsilon", better="lower"),
    Metric("samples_seen", "samples seen"),
    Metric("seconds/total", "wall time", "seconds", "lower"),
    Metric("seconds/prepare", "preparing", "seconds", "lower"),
    Metric("seconds/train", "training", "seconds", "lower"),
    Metric("seconds/aggregate", "aggregation", "seconds", "lower"),
    Metric("seconds/evaluate", "evaluation", "seconds", "lower"),
    Metric("seconds/captions", "captions", "seconds", "lower"),
    Metric("seconds/save", "saving", "seconds", "lower"),
    Metric("bytes/up", "clients to server", "bytes", "lower"),
    Metric("bytes/down", "server to clients", "bytes", "lower"),
    Metric("bytes/secure_up", "clients to server, under masks", "bytes", "lower"),
    Metric("bytes/secure_down", "server to clients, for masks", "bytes", "lower"),
    Metric("bytes/diagnostics", "for diagnostics", "bytes", "lower"),
    Metric("aggregator/energy_kept", "energy kept by averaging", "share", "higher"),
    Metric("aggregator/K_eff", "effective number of clients"),
    Metric("aggregator/cosine", "mean cosine between clients' updates"),
    Metric("aggregator/cosine_min", "least cosine between clients' updates"),
    Metric("aggregator/oscillation", "cosine between successive steps"),
    Metric("aggregator/step_norm", "norm of the server step"),
    Metric("aggregator/delta_norm", "norm of the fused update"),
    Metric("aggregator/tau", "overlap of the clients' evidence", "share"),
    Metric("aggregator/repeatability", "repeatability of the updates", "share"),
    Metric("aggregator/overlap", "overlap of the updates", "share"),
    Metric("aggregator/basis_turn", "turn of the shared basis, mean", "degrees"),
    Metric("aggregator/basis_turn_max", "turn of the shared basis, largest", "degrees"),
    Metric("aggregator/server_lr", "server learning rate"),
    Metric("aggregator/lr", "learning rate"),
    Metric("aggregator/iterations", "iterations of the fuse"),
    Metric("aggregator/objective", "objective of the fuse"),
    Metric("aggregator/trimmed", "clients trimmed at each end"),
    Metric("aggregator/clipped", "share of clients clipped", "share"),
    Metric("aggregator/density", "share of entries kept", "share"),
    Metric("aggregator/image_use", "share of the loss that pictures explain", "share"),
    Metric("aggregator/counted", "weight of the clients, by image use", "share"),
    Metric("aggregator/regret", "regret of the candidates", "share"),
    Metric("aggregator/rank", "directions in the shared basis"),
)
METRICS = {one.key: one for one in _TABLE}
_LAYERS = {"linear": "projector", "linear_1": "layer 1", "linear_2": "layer 2"}


def metric(key: str) -> Metric:
    """The metric of a key; ``prefix/name/part`` is the metric ``prefix/name`` of a part of the projector.

    >>> metric("aggregator/rank/linear_1").title, metric("aggregator/new_thing").title, metric("val/loss").better
    ('directions in the shared basis, layer 1', 'new thing', 'lower')
    """
    if key in METRICS:
        return METRICS[key]
    kind, _, rest = key.partition("/")
    name, _, part = rest.partition("/")
    known = METRICS.get(f"{kind}/{name}", Metric(key, name.replace("_", " ")))
    return known._replace(key=key, title=f"{known.title}, {layer(part)}") if part else known


def layer(name: str) -> str:
    """A part of the projector in words.

    >>> layer("linear_2"), layer("visual.0")
    ('layer 2', 'visual.0')
    """
    return _LAYERS.get(name, name)


def flatten(content: Mapping[str, Any], joint: str = "/", prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, names joined by ``joint``; None is left out.

    >>> flatten({"test": {"loss": 1.0, "cider": None}, "clients": {0: {"domains": ["plain"]}}})
    {'test/loss': 1.0, 'clients/0/domains': ['plain']}
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, joint, f"{prefix}{key}{joint}")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
