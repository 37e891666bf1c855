"""Local steps without the difference between a client's gradients and those of all."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.aggregation.contribution import Cohort, message_of, single, zeros_like
from fedcmp.aggregation.parts import Finished, LocalStep, State
from fedcmp.errors import ConfigError
from fedcmp.types import Params


@dataclass(frozen=True)
class ControlVariates(LocalStep):
    """``g - c_k + c``: the local gradient of SCAFFOLD.

    ``c_k`` estimates the gradient of client k, ``c`` that of all N clients. Both begin at 0. After its steps a
    client of the cohort S keeps a new ``c_k+`` and sends ``c_k+ - c_k``::

        option 1:  c_k+ = mean of the data's gradients at the global parameters    (the batches of the local steps)
        option 2:  c_k+ = mean of the data's gradients on the local path
        c <- c + 1/N sum_{k in S} (c_k+ - c_k)

    Option 1 costs a second pass of every batch. The sum over S is uniform, as in the paper, whatever the weights p_k of
    the deltas count.

    Source: Karimireddy et al., ICML 2020, arXiv 1910.06378, algorithm 1.
    Differs from the paper: its option II, ``c_k - c + (x - y) / (K lr)``, equals the mean of the data's gradients on
    the path for SGD at a constant rate; that mean is used directly, because with AdamW, momentum or a schedule the
    quotient has no meaning. Gradients are the clipped ones, those that the steps would use; the correction is added
    after clipping, and AdamW rescales the sum. Deltas are weighted by the cohort's p_k (by default by samples), where
    the paper's mean is uniform: ``aggregator.weights=uniform`` gives it.
    """

    option: int = 2
    """How a client's control variate is renewed: 1 or 2, as in the paper."""

    def __post_init__(self) -> None:
        if self.option not in (1, 2):
            raise ConfigError(f"aggregator.local.option must be 1 or 2, got {self.option!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The mean gradient, at the global parameters (option 1) or on the local path (option 2)."""
        return frozenset({self._recorded})

    @property
    def _recorded(self) -> str:
        return "start_gradient" if self.option == 1 else "gradient"

    def init(self, params: Params) -> State:
        return {"control": zeros_like(params)}

    client_init = init

    def correct(self, gradient: Params, local: Params, start: Params, shared: State, client: State) -> Params:
        own, mean = client["control"], shared["control"]
        return {name: value - own[name] + mean[name] for name, value in gradient.items()}

    def finish(self, recorded: dict[str, Params], shared: State, client: State) -> Finished:
        renewed = recorded[self._recorded]
        change = {name: value - client["control"][name] for name, value in renewed.items()}
        return Finished({"control": renewed}, change)

    def update(self, cohort: Cohort, shared: State) -> State:
        """``c + 1/N sum_{k in S} (c_k+ - c_k)``, N all clients of the federation."""
        total = cohort.sum(message_of)

        def renewed() -> State:
            control = {
                name: value.double() + total[name] / cohort.population for name, value in shared["control"].items()
            }
            return {"control": single(control)}

        return cohort.share(cohort.on_server(renewed))
