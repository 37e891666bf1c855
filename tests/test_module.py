"""ProjectorAlignment under lightning.Trainer, unchanged; its checkpoints hold the projector only."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from fedcmp.errors import ConfigError
from fedcmp.evaluation.losses import EvalData, evaluate
from fedcmp.models.backbones import LanguageModel, VisionTower
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.optimizer import OptimizerConfig, lr_factor
from fedcmp.runs.fit import fit


@pytest.fixture
def params(tower: VisionTower, llm: LanguageModel) -> dict[str, torch.Tensor]:
    return init_params(tower.width, llm.width, ProjectorConfig(hidden=24), torch.Generator().manual_seed(0))


def fetch(positions) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(positions))
    ids = torch.randint(5, 300, (len(positions), 6), generator=generator)
    features = torch.randn(len(positions), 4, 96, generator=generator)
    return {"features": features, "input_ids": ids, "labels": ids.clone()}


def test_the_trainer_trains_the_projector_and_nothing_else(
    tower: VisionTower, llm: LanguageModel, params, tmp_path: Path
) -> None:
    module = ProjectorAlignment(tower, llm, params, OptimizerConfig(lr=1e-2), total_steps=6)
    frozen = {name: value.clone() for name, value in llm.model.state_dict().items()}
    points = []
    batches = [[i, i + 1, i + 2] for i in range(6)]
    path = tmp_path / "last.ckpt"
    options = {"points": 3, "root": str(tmp_path), "checkpoint": str(path)}
    trained = fit(module, batches, fetch, on_point=lambda steps, _, loss: points.append((steps, loss)), **options)
    assert [steps for steps, _ in points] == [2, 4, 6]
    assert all(not torch.equal(trained[name], params[name]) for name in params)
    assert all(torch.equal(value, frozen[name]) for name, value in llm.model.state_dict().items())
    assert not any(one.training for one in llm.model.modules())
    saved = torch.load(path, weights_only=True)
    assert set(saved["state_dict"]) == {f"projector.{name}" for name in params}
    fresh = ProjectorAlignment(tower, llm, params)
    fresh.load_state_dict(saved["state_dict"])
    assert all(torch.equal(value, trained[name]) for name, value in fresh.projector.params().items())


def test_the_trainer_equals_a_loop_by_hand(tower: VisionTower, llm: LanguageModel, params, tmp_path: Path) -> None:
    config = OptimizerConfig(lr=3e-3, clip_norm=0.5, warmup=0.2)
    batches = [[i, i + 1] for i in range(5)]
    trained = fit(ProjectorAlignment(tower, llm, params, config, 5), batches, fetch, root=str(tmp_path))
    module = ProjectorAlignment(tower, llm, params, config)
    optimizer = torch.optim.AdamW(module.projector.parameters(), weight_decay=0.0)
    for step, positions in enumerate(batches):
        nll, tokens = module.nll(fetch(positions))
        (nll.sum() / tokens.sum()).backward()
        torch.nn.utils.clip_grad_norm_(module.projector.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 3e-3 * lr_factor((step + 0.5) / 5, config)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in module.projector.params().items():
        torch.testing.assert_close(trained[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_pixels_and_their_features_give_the_same_loss(tower: VisionTower, llm: LanguageModel, params) -> None:
    module = ProjectorAlignment(tower, llm, params)
    batch = fetch([1, 2])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    cached = {**batch, "features": tower.look(pixels).float()}
    seen = {"pixels": pixels, "input_ids": batch["input_ids"], "labels": batch["labels"]}
    torch.testing.assert_close(module.nll(seen)[0], module.nll(cached)[0])
    with pytest.raises(ValueError, match="without a tower"):
        ProjectorAlignment(None, llm, params).nll(seen)


def test_the_schedule_rises_and_falls_once() -> None:
    rates = [lr_factor(step / 100, OptimizerConfig(warmup=0.1)) for step in range(101)]
    assert (rates[0], rates[10], rates[100]) == pytest.approx((0.0, 1.0, 0.0))
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert lr_factor(0.7, OptimizerConfig(schedule="linear", warmup=0.0)) == pytest.approx(0.3)


def test_bad_settings_name_the_key() -> None:
    for key, value in (
        ("name", "adam"), ("schedule", "cosin"), ("lr", 0.0), ("lr", math.inf), ("betas", [0.9, 1.0]), ("betas", [0.9]),
        ("warmup", 1.0), ("momentum", 1.0), ("clip_norm", -1.0), ("weight_decay", -1.0),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"^optimizer\.{key}"):
            OptimizerConfig(**{key: value}).validate()


def validated(module: ProjectorAlignment, loaders: object, root: Path, part: str = "val") -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        trainer = lightning.Trainer(accelerator="cpu", default_root_dir=root, **quiet)
        found = (trainer.validate if part == "val" else trainer.test)(module, loaders)
    return {name: value for one in found for name, value in one.items()}


def test_the_trainer_validates_per_token_whatever_the_batches(
    tower: VisionTower, llm: LanguageModel, params, tmp_path: Path
) -> None:
    """The numbers of a round's evaluation, under the names of a Lightning user."""
    module = ProjectorAlignment(tower, llm, params)
    rows = [fetch([one]) for one in range(5)]
    rows[2]["labels"][:, :4] = -100  # a short caption counts for less
    whole = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def some(positions) -> dict[str, torch.Tensor]:
        return {name: value[list(positions)] for name, value in whole.items()}

    uneven = validated(module, DataLoader([some([0, 3, 2]), some([1]), some([4])], batch_size=None), tmp_path)
    expected = evaluate(module, params, EvalData(some, ("all",) * 5))
    assert uneven["val/loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert uneven["val/accuracy"] == pytest.approx(expected.token_accuracy, rel=1e-6)
    assert uneven["val/perplexity"] == pytest.approx(math.exp(expected.loss), rel=1e-6)
    loaders = [DataLoader([some([0, 1])], batch_size=None), DataLoader([some([2]), some([4, 3])], batch_size=None)]
    apart = validated(module, loaders, tmp_path, "test")
    by_loader = evaluate(module, params, EvalData(some, ("0", "0", "1", "1", "1"))).by_domain
    assert {name: apart[f"test/loss/{name}"] for name in by_loader} == pytest.approx(by_loader, rel=1e-6)
    assert module.state_dict().keys() == {f"projector.{name}" for name in params}
