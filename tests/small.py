"""A run of the demo that takes a second or two. What a test adds after it wins."""

SMALL = [
    "data.scenes_per_camera=8",
    "data.val_scenes_per_camera=2",
    "data.test_scenes_per_camera=2",
    "federation.rounds=2",
    "federation.batch_size=4",
    "evaluation.captions=4",
    "evaluation.examples=1",
    "evaluation.max_tokens=12",
    "evaluation.questions=2",
    "run.figures=false",  # half of such a run's time
    "wandb.mode=disabled",
]
