"""The one LightningModule: frozen tower, trainable projector, frozen LLM. Nothing in it is federated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from fedcmp.models.alignment import caption_nll, caption_scores, greedy_captions
from fedcmp.models.backbones import LanguageModel, VisionTower
from fedcmp.models.projector import Observe, Projector, project
from fedcmp.optimizer import OptimizerConfig, build_optimizer, lr_factor
from fedcmp.types import Batch, Params


class ProjectorAlignment(lightning.LightningModule):
    """Next-token loss on captions, with the projector as the only trainable part.

    ``lightning.Trainer`` trains, validates and tests it unchanged. Its ``state_dict``, and so every checkpoint, holds
    the projector only.

    Args:
        tower: the frozen vision tower; None where batches bring cached features.
        llm: the frozen language model.
        params: where the projector starts.
        optimizer: rate, schedule and clipping.
        total_steps: optimizer steps of the whole training, for the schedule of centralized training.
    """

    strict_loading = False

    def __init__(
        self,
        tower: VisionTower | None,
        llm: LanguageModel,
        params: Params,
        optimizer: OptimizerConfig | None = None,
        total_steps: int = 1,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.llm = llm
        self.llm_model = llm.model  # registered, so that it moves to the device with the module
        self.projector = Projector(params)
        self.optimizer_config = optimizer or OptimizerConfig()
        self.total_steps = max(1, total_steps)
        self._quality: list[dict[str, MeanMetric]] = []

    def train(self, mode: bool = True) -> ProjectorAlignment:
        super().train(mode)
        self.llm_model.eval()  # frozen parts never drop out, whatever mode the projector is in
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"projector.{name}": value for name, value in self.projector.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        own = {key.removeprefix("projector."): value for key, value in state_dict.items()}
        return self.projector.load_state_dict(own, strict=strict, assign=assign)

    def features(self, batch: Batch) -> Tensor:
        """The batch's image features ``[B, T, d]``, float32: cached ones, or what the tower sees, rounded like them."""
        if "features" in batch:
            return batch["features"]
        if self.tower is None:
            raise ValueError("the batch holds pixels, but this module was built without a tower")
        return self.tower.look(batch["pixels"]).float()

    def seen(self, batch: Batch) -> Batch:
        """The batch with features in place of pixels, for callers that use it more than once."""
        rest = {name: value for name, value in batch.items() if name != "pixels"}
        return {**rest, "features": self.features(batch)}

    def nll(self, batch: Batch, params: Params | None = None, observe: Observe | None = None) -> tuple[Tensor, Tensor]:
        """Summed caption loss in nats and number of labelled tokens of each row: ``[B]``, ``[B]``.

        Args:
            batch: B rows. For a stack of C projectors, C equal shares one after another.
            params: another projector's parameters, or a stack with a leading axis C; None: the module's own.
            observe: sees what each affine layer of the projector is given.
        """
        tokens = self._image_tokens(batch, params, observe)
        return caption_nll(self.llm, tokens, batch["input_ids"], batch["labels"])

    @torch.no_grad()
    def scores(self, batch: Batch, params: Params | None = None) -> Tensor:
        """Loss, labelled tokens and those that are the likeliest, of each row: ``[3, B]``; arguments as ``nll``."""
        tokens = self._image_tokens(batch, params)
        return caption_scores(self.llm, tokens, batch["input_ids"], batch["labels"])

    def _image_tokens(self, batch: Batch, params: Params | None, observe: Observe | None = None) -> Tensor:
        features = self.features(batch)
        live = self.projector.params() if params is None else params
        stack = next(iter(live[name] for name in live if name.endswith("weight") and "norm" not in name))
        if stack.dim() == 3:
            rows = features.reshape(len(stack), -1, *features.shape[1:])
            return project(live, rows, observe).flatten(0, 1)
        return project(live, features, observe)

    @torch.no_grad()
    def captions(self, batch: Batch, max_tokens: int = 48) -> list[str]:
        """Greedy captions of the batch's pictures by the module's own projector."""
        return greedy_captions(self.llm, self.projector(self.features(batch)), max_tokens)

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        nll, tokens = self.nll(batch)
        loss = nll.sum() / tokens.sum()
        self.log("train/loss", loss.detach(), batch_size=len(nll))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._start_quality(self.trainer.num_val_batches)

    def on_test_epoch_start(self) -> None:
        self._start_quality(self.trainer.num_test_batches)

    def validation_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Logs ``val/loss``, ``val/perplexity`` and ``val/accuracy`` at the end, means over all labelled tokens;
        ``val/loss/0`` and so on for several loaders. Neither the size of a batch nor how ranks share the rows matters;
        Lightning's sampler for several devices repeats some rows, which then count twice."""
        nll, tokens, hits = self.scores(batch)
        for name, value in (("loss", nll), ("accuracy", hits)):
            self._quality[dataloader_idx][name].update(value.double().sum() / tokens.sum(), tokens.sum())

    def test_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """The same as ``test/...``."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_quality("val")

    def on_test_epoch_end(self) -> None:
        self._log_quality("test")

    def _start_quality(self, loaders: list[Any]) -> None:
        self._quality = [
            {name: MeanMetric().set_dtype(torch.float64).to(self.device) for name in ("loss", "accuracy")}
            for _ in loaders
        ]

    def _log_quality(self, part: str) -> None:
        for number, quality in enumerate(self._quality):
            suffix = f"/{number}" if len(self._quality) > 1 else ""
            found = {name: mean.compute() for name, mean in quality.items()}
            found["perplexity"] = found["loss"].exp()
            # compute() has added up the ranks, so the mean over them changes nothing
            self.log_dict(
                {f"{part}/{name}{suffix}": value for name, value in found.items()},
                sync_dist=True, add_dataloader_idx=False,
            )  # fmt: skip

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        optimizer = build_optimizer(self.projector.parameters(), config)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor((step + 0.5) / self.total_steps, config)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as the federated clients do."""
        limit = gradient_clip_val or self.optimizer_config.clip_norm
        if limit:
            torch.nn.utils.clip_grad_norm_(self.projector.parameters(), limit)
