"""The settings of a federation."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.aggregation.checks import require_count, require_number
from fedcmp.errors import ConfigError, check_choice

ON_ERROR = ("raise", "skip", "retry")
SECURE = ("none", "masks")
FAULTS = {
    "failed": "it raised an error, which its traceback in the log names",
    "malformed": "it sent other names, shapes or types than the projector has",
    "not_finite": "its loss, or something that it sent, is not finite",
    "evidence": "its evidence is no second moment",
    "norm": "its update, or its evidence, is too large",
    "slow": "it trained for longer than federation.deadline",
    "lost": "its site was lost, or did not answer in time",
    "refused": "its site refused",
    "ended": "another site was lost after a sum was opened: the round ended without a change",
}
"""Why a client may be left out of a round, in one word and in more."""


@dataclass
class FederationConfig:
    """How a run is divided into rounds."""

    rounds: int = 12
    """Aggregations, >= 1."""
    local_steps: int = 0
    """Optimizer steps of a client in one round; 0: each client spreads its samples evenly over its expected rounds."""
    batch_size: int = 16
    """Rows of one local step, >= 1."""
    group_by_length: bool = False
    """Batch a client's samples of a round by the length of their captions: less of a batch is padding."""
    passes: int = 1
    """How often a client may use each of its samples over the whole run, >= 1."""
    clients_per_round: int = 0
    """Size of the cohort, drawn from the clients that have samples left; 0: all clients, of which those with fewer
    batches than there are rounds rest in some."""
    dropout: float = 0.0
    """Probability that a chosen client does not report in a round, in [0, 1); `min_clients` always do."""
    min_clients: int = 1
    """Fewer accepted clients than this end the run with an error."""
    slots: int = 2
    """Clients that one group of ranks trains at once, stacked, >= 1."""
    keep_local_state: bool = False
    """Carry each client's optimizer state from round to round instead of starting it fresh."""
    on_client_error: str = "raise"
    """When a client fails: `raise` ends the run, `skip` leaves the client out of the round, `retry` trains it once more
    before that. Its traceback is logged."""
    max_update_norm: float = 0.0
    """Updates with a larger Euclidean norm are left out; 0: no bound."""
    norm_bound: float = 0.0
    """Clients whose update or evidence is larger than so many times the round's median are left out, where there are
    three or more; 0: no bound, else > 1."""
    deadline: float = 0.0
    """Seconds; a client that trained longer is left out; 0: none. It needs `slots=1`, and cannot be repeated."""
    secure: str = "none"
    """`none`: the server sees every term; `masks`: secure aggregation, it sees sums; for *sums only* methods with
    `aggregator.pairwise=0`, on one rank."""
    secure_dropout: float = 0.0
    """Probability that a client is lost in a round's first secure sum, in [0, 1), at most a third of the clients; the
    round goes on without it."""
    evaluate_every: int = 1
    """Rounds between evaluations; the start and the last round are always evaluated."""
    keep_checkpoints: int = 2
    """Checkpoints kept in the run folder, >= 1."""

    def validate(self, prefix: str = "federation") -> None:
        for key in ("rounds", "batch_size", "passes", "min_clients", "slots", "evaluate_every", "keep_checkpoints"):
            require_count(f"{prefix}.{key}", getattr(self, key), least=1)
        for key in ("local_steps", "clients_per_round", "max_update_norm", "norm_bound", "deadline"):
            require_number(f"{prefix}.{key}", getattr(self, key), "[0, inf]")
        for key in ("dropout", "secure_dropout"):
            require_number(f"{prefix}.{key}", getattr(self, key), "[0, 1)")
        check_choice(f"{prefix}.on_client_error", self.on_client_error, ON_ERROR)
        check_choice(f"{prefix}.secure", self.secure, SECURE)
        size = self.clients_per_round
        for wrong, reason in (
            (0 < self.norm_bound <= 1, f"norm_bound must be 0 (no bound) or above 1, got {self.norm_bound}"),
            (self.deadline and self.slots > 1, f"deadline needs {prefix}.slots=1, got {self.slots}"),
            (self.secure_dropout and self.secure == "none", f"secure_dropout needs {prefix}.secure=masks"),
            (self.secure != "none" and size == 1, f"secure needs at least 2 clients: {prefix}.clients_per_round is 1"),
            (0 < size < self.min_clients, f"min_clients={self.min_clients} is above {prefix}.clients_per_round={size}"),
        ):
            if wrong:
                raise ConfigError(f"{prefix}.{reason}")
