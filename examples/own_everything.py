"""A federation of one's own parts: data sets, frozen models, a method, and a look at every round.

python examples/own_everything.py
"""

import torch
import transformers
from PIL import Image

import fedcmp
from fedcmp.data.scenes import make_scene, render
from fedcmp.models.backbones import DEMO


class Scenes:
    """A data set: any object with a length and (picture, caption) items; yours reads files."""

    def __init__(self, pool: str, camera: str, count: int) -> None:
        self.pool, self.camera, self.count = pool, camera, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        scene = make_scene(self.pool, self.camera, index)
        return render(scene), scene.caption


def load_models() -> tuple[fedcmp.VisionTower, fedcmp.LanguageModel]:
    """Any vision model and causal LM of transformers; here those that come with fedcmp."""
    eyes = transformers.CLIPVisionModel.from_pretrained(DEMO / "tower", dtype=torch.float32)
    processor = transformers.AutoImageProcessor.from_pretrained(DEMO / "tower")
    mouth = transformers.AutoModelForCausalLM.from_pretrained(DEMO / "llm", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "llm")
    return fedcmp.VisionTower(eyes, processor), fedcmp.LanguageModel.wrap(mouth, tokenizer)


def halfway_to_median(deltas: fedcmp.Params, weights: torch.Tensor) -> fedcmp.Params:
    """A method: what K clients changed, [K, ...] each, and their weights [K], to one change."""
    mean = {name: torch.tensordot(weights.float(), value, 1) for name, value in deltas.items()}
    return {name: (mean[name] + value.median(0).values) / 2 for name, value in deltas.items()}


def look(one: fedcmp.Round) -> bool:
    """Called after every round; True ends the run."""
    print(f"round {one.number} of {one.of}: validation loss {one.loss:.3f}")
    return one.loss < 0.5


def main(tower: fedcmp.VisionTower, llm: fedcmp.LanguageModel) -> fedcmp.Federated:
    cameras = ("plain", "faint", "noisy", "tilted")
    done = fedcmp.federate(
        clients={camera: Scenes("train", camera, 512) for camera in cameras},
        val={camera: Scenes("val", camera, 24) for camera in cameras},
        tower=tower,
        llm=llm,
        aggregator=halfway_to_median,
        rounds=8,
        settings={"optimizer.lr": 1e-2, "federation.batch_size": 16},
        on_round=look,
    )
    picture, caption = Scenes("test", "plain", 1)[0]
    print(f"said: {done.caption([picture])[0]}\ntrue: {caption}")
    return done


if __name__ == "__main__":
    main(*load_models())
