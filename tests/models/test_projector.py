"""The projector: a stack equals its members, names and initialisation are the documented ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedcmp.models.projector import Projector, ProjectorConfig, init_params, param_shapes, project
from fedcmp.seeding import torch_rng


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_a_stack_equals_its_members_and_has_the_known_shapes(kind: str, layer_norm: bool) -> None:
    config = ProjectorConfig(kind=kind, hidden=7 if kind != "linear" else 0, layer_norm=layer_norm)
    members = [init_params(5, 6, config, torch.Generator().manual_seed(seed)) for seed in range(3)]
    members = [{name: value + seed for name, value in one.items()} for seed, one in enumerate(members)]  # norms differ
    found = {name: tuple(value.shape) for name, value in members[0].items()}
    assert list(found.items()) == list(param_shapes(5, 6, config).items())
    stack = {name: torch.stack([member[name] for member in members]) for name in members[0]}
    features = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(9))
    together = project(stack, features)
    assert together.shape == (3, 4, 2, 6)
    for index, member in enumerate(members):
        torch.testing.assert_close(together[index], project(member, features[index]))


def test_it_is_llavas_mlp_and_starts_as_torchs_layers_do() -> None:
    params = init_params(5, 6, ProjectorConfig(), torch.Generator().manual_seed(0))
    reference = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 6))
    reference.load_state_dict({k.replace("linear_1", "0").replace("linear_2", "2"): v for k, v in params.items()})
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    projector = Projector({name: torch.zeros_like(value) for name, value in params.items()})
    projector.load(params)
    params["linear_1.weight"].zero_()
    torch.testing.assert_close(projector(x), reference(x))  # of what was loaded, a copy
    one, two = (init_params(400, 50, ProjectorConfig(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    weight = one["linear_1.weight"]
    assert 0.045 < float(weight.abs().max()) <= 0.05
    assert float(weight.std()) == pytest.approx(0.05 / 3**0.5, rel=0.02)


def test_the_gradients_of_a_stack_are_true() -> None:
    params = [init_params(3, 2, ProjectorConfig(), torch_rng(0, "stack", client)) for client in range(2)]
    stacked = {name: torch.stack([one[name] for one in params]).double().requires_grad_() for name in params[0]}
    features = torch.randn(2, 2, 4, 3, dtype=torch.float64, generator=torch_rng(0, "features")).requires_grad_()

    def outputs(features: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return project(dict(zip(stacked, values, strict=True)), features)

    assert torch.autograd.gradcheck(outputs, (features, *stacked.values()))
