"""What `fedcmp evaluate --print-lmms-eval` prints is what lmms-eval takes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import transformers
import yaml
from models.tiny import save_tower
from small import SMALL
from tiny_models import pictures
from venvs import install, make_python

from fedcmp.cli import main
from fedcmp.config import load_config
from fedcmp.runs.lmms_eval import TASKS, VERSION, lmms_eval_commands
from fedcmp.runs.train import train

NEEDED = ("loguru", "pytz", "evaluate", "accelerate", "decord", "sacrebleu", "tenacity", "pytablewriter")
"""What lmms-eval imports for a llava_hf and its tables; all that it asks for is gigabytes."""
QUESTION = "Is there a seven in the image?"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a run"
    words = ["data.scenes_per_camera=64", "evaluation.captions=0", "evaluation.examples=0"]
    train(load_config(None, [*SMALL, *words, f"run.dir={folder}"]))
    return folder


def commands(capsys: pytest.CaptureFixture[str], *words: object) -> list[list[str]]:
    assert main(["evaluate", "--print-lmms-eval", *map(str, words)]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_the_export_comes_first_and_only_once(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = commands(capsys, finished, "run.device=cpu")
    assert first == ["fedcmp", "export", str(finished), "--to", "hf", "--out", f"{finished}/hf"]
    assert second == [
        *("python", "-m", "lmms_eval", "--model", "llava_hf"),
        *("--model_args", f"pretrained={finished}/hf,device=cpu,device_map=cpu"),
        *("--tasks", ",".join(TASKS), "--batch_size", "1"),
        *("--output_path", f"{finished}/lmms-eval", "--log_samples"),
    ]
    assert any("chat_template.jinja" in note for note in lmms_eval_commands(finished).notes), "the demo's LLM has none"
    assert main(first[1:]) == 0
    assert "are equal to the bit" in capsys.readouterr().out
    assert commands(capsys, finished, "run.device=cpu") == [second]
    (other,) = commands(capsys, finished, "run.device=cuda", "--tasks", "pope, mme")
    assert other[6:9] == [f"pretrained={finished}/hf,device_map=auto", "--tasks", "pope,mme"]


def test_wrong_words_are_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "README.md").write_text("another model")
    tower, folder = save_tower("mobilenet", tmp_path / "tower"), tmp_path / "run"  # which a Llava cannot hold
    train(load_config(None, [*SMALL, f"model.tower={tower}", f"run.dir={folder}"]))
    printed = ["evaluate", "--print-lmms-eval"]
    for words, code, message in (
        ([*printed, finished, "--tasks", "pope,,mme"], 2, "--tasks"),
        ([*printed, finished, "--export", tmp_path / "a,b"], 2, "--export"),
        ([*printed, finished, "--export", tmp_path / "else"], 1, str(tmp_path / "else")),
        ([*printed, finished, tmp_path], 2, "one run folder"),
        ([*printed, tmp_path], 1, str(tmp_path)),
        ([*printed, finished, "federation.rounds=9"], 2, "federation.rounds"),
        (["evaluate", finished, "--tasks", "x"], 2, "--tasks"),
        ([*printed, folder], 2, f"model.tower={tower}"),
    ):
        assert main([str(word) for word in words]) == code
        said = capsys.readouterr()
        assert message in said.err
        assert said.out == ""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with lmms-eval in front of the packages of this one."""
    made = make_python(tmp_path_factory.mktemp("lmms"))
    wrong = install(made, "--no-deps", f"lmms-eval=={VERSION}") or install(made, *NEEDED)
    if wrong:
        pytest.skip(f"lmms-eval {VERSION} cannot be installed here: {wrong}")
    return made


def local_pope(python: Path, folder: Path) -> None:
    """lmms-eval's own POPE, with its functions and metrics, on pictures that are here."""
    where = "import lmms_eval.tasks.pope.utils as one; print(one.__file__)"
    done = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    source = Path(done.stdout.strip().splitlines()[-1])
    folder.mkdir()
    (folder / "utils.py").write_text(source.read_text())
    task = source.with_name("pope.yaml").read_text().replace("lmms-lab-encoder/POPE", "parquet")
    task = task.replace("  token: True", f"  data_files: {{test: {folder}/test.parquet}}").replace('"pope"', '"here"')
    assert "data_files" in task
    assert '"here"' in task
    (folder / "here.yaml").write_text(task)
    for number, picture in enumerate(pictures(4)):
        picture.save(folder / f"{number}.png")
    code = f"""
import datasets
texts = ("id", "question_id", "question", "answer", "image_source", "category")
features = datasets.Features({{**{{name: datasets.Value("string") for name in texts}}, "image": datasets.Image()}})
rows = [
    dict(id=str(i), question_id=str(i), question={QUESTION!r}, answer=("yes", "no")[i % 2], image_source="here",
         category="random", image={str(folder)!r} + f"/{{i}}.png")
    for i in range(4)
]
datasets.Dataset.from_list(rows, features=features).to_parquet({f"{folder}/test.parquet"!r})
"""
    subprocess.run([python, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_lmms_eval_runs_the_printed_command(finished: Path, python: Path, tmp_path, capsys) -> None:
    """With lmms-eval's own llava_hf and POPE; its answers are those of generate() in this process."""
    export, tasks = tmp_path / "export", tmp_path / "tasks"
    local_pope(python, tasks)
    first, second = commands(capsys, finished, "run.device=cpu", "--export", export, "--tasks", "here")
    assert main(first[1:]) == 0
    second[second.index("--output_path") + 1] = str(tmp_path / "results")
    more = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | more
    command = [str(python), *second[1:], "--include_path", str(tasks)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "results").rglob("*_samples_here.jsonl")
    answers = {one["doc_id"]: one["filtered_resps"] for one in map(json.loads, samples.read_text().splitlines())}
    assert len(set(answers.values())) > 1, "other pictures, other answers"

    processor = transformers.AutoProcessor.from_pretrained(export)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(export, dtype="auto")
    options = yaml.safe_load((tasks / "here.yaml").read_text().replace("!function ", ""))
    text = QUESTION + options["lmms_eval_specific_kwargs"]["default"]["post_prompt"]
    end, longest = processor.tokenizer.eos_token_id, options["generation_kwargs"]["max_new_tokens"]
    for number, picture in enumerate(pictures(4)):
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = processor(images=[picture], text=prompt, return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=longest, pad_token_id=end, eos_token_id=end)
        answer = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        assert answers[number].strip() == answer.strip()
