"""The checks of the doctor, one after the other: each looks at one thing. Nothing is changed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedcmp.config import Config
from fedcmp.data.scenes import CAMERAS, make_scene, render
from fedcmp.data.settings import expand
from fedcmp.distributed.launch import started_by
from fedcmp.distributed.probe import LAUNCHER_VARIABLES, meet
from fedcmp.errors import CheckpointError, ConfigError, DataError
from fedcmp.export.read import read_projector
from fedcmp.federation.folder import LEAST_FREE
from fedcmp.models.backbones import ModelConfig, load_llm, load_tower
from fedcmp.models.outline import outline_llm, outline_tower
from fedcmp.runs.data import read_samples
from fedcmp.runs.models import check_models, foresee_cut
from fedcmp.tracking.wandb import has_key

INSTALL = "install fedcmp anew: pip install -c constraints.txt -e ."
SBATCH = "sbatch launch/slurm.sbatch CONFIG run.dir=PATH"
COMFORTABLE = 2**30
"""Free bytes below which a run may end in a full disk."""


class Finding(NamedTuple):
    """One line of the doctor."""

    status: str
    """``ok``, ``warn`` (a run works, but not as it could) or ``fatal`` (it would fail)."""
    what: str
    mend: str = ""
    """What to do about it."""

    def line(self) -> str:
        """The printed line.

        >>> Finding("warn", "no disk space", "make some").line()
        'warn   no disk space  -> make some'
        """
        return f"{self.status:<5}  {self.what}" + (f"  -> {self.mend}" if self.mend else "")


class Machine(NamedTuple):
    """What the checks look at."""

    environment: Mapping[str, str]
    cores: int
    """Those that this process may use."""
    gpus: tuple[tuple[str, int, int], ...]
    """Name, free bytes and all bytes of those that torch can use."""
    driver: str | None
    """Version of the NVIDIA driver; None: there is none."""
    build: str | None
    """The CUDA version that torch was built for; None: a CPU build."""
    remark: str
    """The first warning of torch, or empty."""


Findings = Iterator[Finding]
Check = Callable[[Config, Machine], Findings]


def examine(config: Config, environment: Mapping[str, str] = os.environ) -> Findings:
    """The findings, each as soon as it is known; a few seconds in all.

    Args:
        config: the run whose needs are looked at, checked; the default one needs little.
        environment: the variables of this process.
    """
    machine = look(environment)
    for check in CHECKS:
        try:
            yield from check(config, machine)
        except Exception as error:  # a check that fails must not hide the others
            what = f"{check.__name__}: the check itself failed: {type(error).__name__}"
            yield Finding("fatal", what, "please report it")


def look(environment: Mapping[str, str]) -> Machine:
    """This machine."""
    gpus, remarks = [], []
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        try:
            for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
                gpus.append((torch.cuda.get_device_name(number), *torch.cuda.mem_get_info(number)))
        except RuntimeError as error:  # for example a GPU that lets one process in, and has one
            remarks.append(f"cuda:{len(gpus)}: {error}")
    remarks = [text.splitlines()[0] for text in (*remarks, *(str(one.message) for one in raised))]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(environment, cores, tuple(gpus), driver, torch.version.cuda, (remarks or [""])[0])


def packages(config: Config, machine: Machine) -> Findings:
    """Whether Python and every package are in the ranges of pyproject.toml."""
    try:
        wanted, required = metadata.metadata("fedcmp")["Requires-Python"], metadata.requires("fedcmp") or []
    except metadata.PackageNotFoundError:
        yield Finding("warn", "fedcmp is not installed, so its requirements are unknown", INSTALL)
        return
    version = platform.python_version()
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        yield Finding("fatal", f"Python {version}; fedcmp needs {wanted}", "make an environment with a newer Python")
    found = [f"Python {version}"]
    for one in map(Requirement, required):
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            found.append(f"{one.name} {(version := metadata.version(one.name))}")
        except metadata.PackageNotFoundError:
            yield Finding("fatal", f"{one.name} is missing; fedcmp needs {one}", INSTALL)
            continue
        if not one.specifier.contains(version, prereleases=True):
            yield Finding("warn", f"{one.name} is {version}, outside {one.specifier}", INSTALL)
    yield Finding("ok", ", ".join(found))


def devices(config: Config, machine: Machine) -> Findings:
    """Whether torch can use the GPUs."""
    what = f"torch {torch.__version__}, {f'CUDA {machine.build}' if machine.build else 'a CPU build'}"
    what += f", driver {machine.driver}" if machine.driver else ""
    for number, (name, free, total) in enumerate(machine.gpus):
        line = f"cuda:{number} {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, {what}"
        yield Finding("ok", line) if free >= total / 2 else Finding("warn", line, "others use it: see nvidia-smi")
    bad = "fatal" if config.run.device == "cuda" and not machine.gpus else "warn"
    if machine.remark:
        yield Finding(bad, f"{what}: {machine.remark}", "install a torch for this GPU and driver, or update the driver")
    elif machine.driver and not machine.gpus:
        mend = "install a torch with CUDA for this driver (pytorch.org, Get Started), or see CUDA_VISIBLE_DEVICES"
        yield Finding(bad, f"no GPU is usable: {what}", mend)
    elif bad == "fatal":
        yield Finding(bad, f"run.device is cuda, and no GPU is here: {what}", "use run.device=auto, or another machine")
    elif not machine.gpus:
        yield Finding("ok", f"cpu; {what}, no GPU")


def threads(config: Config, machine: Machine) -> Findings:
    """Whether ranks share the cores: with more threads than cores a run is many times slower."""
    ranks, text = config.launch.devices, machine.environment.get("OMP_NUM_THREADS")
    if text is not None and not (text.isdecimal() and int(text) > 0):
        text = None
        yield Finding("warn", "OMP_NUM_THREADS is no number of threads", "unset OMP_NUM_THREADS")
    # torchrun gives each of several ranks one thread by default
    each, share = int(text) if text else 1 if ranks > 1 else machine.cores, max(1, machine.cores // ranks)
    what = f"{machine.cores} cores; {ranks} x {each} threads{'' if text else ' (OMP_NUM_THREADS is not set)'}"
    if each * ranks <= machine.cores:
        yield Finding("ok", what)
    else:
        mend = f"export OMP_NUM_THREADS={share}" if each > share else f"lower launch.devices to {machine.cores}"
        yield Finding("warn", f"{what}: more threads than cores", mend)


def launchers(config: Config, machine: Machine) -> Findings:
    """Whether variables of a launcher are set where there is none, and where this process is in SLURM."""
    environment = machine.environment
    found = [name for name in LAUNCHER_VARIABLES if name in environment]
    launched = "TORCHELASTIC_RUN_ID" in environment or environment.get("LT_CLI_USED") == "1"
    if {"RANK", "WORLD_SIZE"} & set(found) and not launched:
        what = f"{', '.join(found)} set, but neither torchrun nor `fabric run` runs: a run would wait for other ranks"
        yield Finding("warn", what, f"unset {' '.join(found)}, unless a launcher of your own sets them")
    elif launched:
        yield Finding("ok", "launched by torchrun or `fabric run`")
    tools = [tool for tool in ("srun", "sbatch") if shutil.which(tool)]
    job, tasks, starter = environment.get("SLURM_JOB_ID"), environment.get("SLURM_NTASKS", "1"), started_by(environment)
    if job is None:
        yield Finding("ok", "SLURM: outside of an allocation", f"to start a run: {SBATCH}" if tools else "")
    elif starter == "srun":
        step = f"rank {environment['SLURM_PROCID']} of a step of {environment['SLURM_STEP_NUM_TASKS']}"
        yield Finding("ok", f"SLURM: {step}")
    elif "srun" not in tools:
        yield Finding("warn", f"SLURM: inside job {job}, but srun is not found", "put SLURM's programs on the PATH")
    elif tasks != "1" and starter == "none":
        what = f"SLURM: job {job} has {tasks} tasks, but this process is no step of several: it would be the only rank"
        yield Finding("warn", what, f"srun fedcmp train CONFIG, or {SBATCH}")
    else:
        yield Finding("ok", f"SLURM: inside job {job}, tasks: {tasks}")


def process_groups(config: Config, machine: Machine) -> Findings:
    """Whether ranks can meet."""
    several = config.launch.devices > 1
    tried = [("gloo", 2, several and not machine.gpus, "name an interface that is up: GLOO_SOCKET_IFNAME=lo")]
    if machine.gpus and config.run.device != "cpu":
        tried.append(("nccl", min(2, len(machine.gpus)), several, "set NCCL_DEBUG=INFO and try launch.devices=2"))
    for backend, ranks, needed, mend in tried:
        result = meet(backend, ranks)
        if result.met:
            yield Finding("ok", f"{backend}: {ranks} ranks met in {result.seconds:.0f} seconds, with imports")
        else:
            what = f"{backend}: {ranks} ranks cannot meet: {result.reason}"
            yield Finding("fatal" if needed else "warn", what, mend)


def weights_and_biases(config: Config, machine: Machine) -> Findings:
    """Whether W&B can be reached as the config wants it; a key is looked for and never shown."""
    if config.wandb.mode != "online" or has_key(machine.environment):
        yield Finding("ok", f"Weights & Biases: {config.wandb.mode}")
    else:
        mend = "wandb login, or set WANDB_API_KEY, or use wandb.mode=offline and `wandb sync` later"
        yield Finding("fatal", "Weights & Biases: online, but there is no key", mend)


def folders(config: Config, machine: Machine) -> Findings:
    """Whether run folder and cache can be written, and how much room they have. A test file is made and removed."""
    wanted = {"run.dir": Path(config.run.dir or "runs").expanduser()}
    if config.data.cache_dir is not None:
        wanted["data.cache_dir"] = expand(config.data.cache_dir)
    for key, folder in wanted.items():
        place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        try:
            with tempfile.NamedTemporaryFile(dir=place) as probe:
                probe.write(b"0")
                probe.flush()
            free = shutil.disk_usage(place).free
        except OSError as error:
            what = f"{key}: {folder} cannot be written ({error.strerror or error})"
            yield Finding("fatal", what, f"set {key} to another place")
            continue
        status = "ok" if free >= COMFORTABLE else "fatal" if free < LEAST_FREE else "warn"
        mend = "" if status == "ok" else f"make room, or set {key} to another disk"
        yield Finding(status, f"{key}: {folder}, {free / 1e9:.1f} GB free", mend)


def demo(config: Config, machine: Machine) -> Findings:
    """Whether the embedded models load and encode an embedded picture."""
    try:
        tower, llm = load_tower(ModelConfig()), load_llm(ModelConfig())
        features = tower.encode(tower.preprocess([render(make_scene("val", next(iter(CAMERAS)), 0))]))
    except Exception as error:  # the remedy is the same for any
        what = " ".join(f"the embedded demo does not load: {type(error).__name__}: {error}".split())
        yield Finding("fatal", what, "pip install --force-reinstall --no-deps -e .")
        return
    yield Finding("ok", f"the embedded demo loads: {features.shape[1]} tokens, width {tower.width} to {llm.width}")


def models(config: Config, machine: Machine) -> Findings:
    """Whether the models of a config can be read here, without their weights, and the projector to start from."""
    model = config.model
    for key, name, outline in (("tower", model.tower, outline_tower), ("llm", model.llm, outline_llm)):
        try:
            if name == "demo":
                continue
            if outline(model) is not None:
                yield Finding("ok", f"model.{key}: {name}")
            elif Path(name).expanduser().is_dir():
                what = f"model.{key}: {name} is unknown to transformers"
                yield Finding("warn", what, "correct its config.json and preprocessor_config.json")
            else:
                mend = f"a run fetches it; or fetch it before: hf download {name}"
                yield Finding("warn", f"model.{key}: {name} is not on this machine", mend)
        except ConfigError as error:
            yield Finding("fatal", str(error), f"correct model.{key}")
    if model.projector.init is not None:
        try:
            read_projector(expand(model.projector.init))
            yield Finding("ok", f"model.projector.init: {model.projector.init}")
        except CheckpointError as error:
            yield Finding("fatal", f"model.projector.init: {error}", "correct the path")


def data(config: Config, machine: Machine) -> Findings:
    """Whether the files and folders of the data are there, and whether the LLM can read the captions."""
    one = config.data
    wanted = {f"data.{key}": getattr(one, key) for key in ("train", "val", "test", "images") if one.kind == "file"}
    if one.kind == "pairs":
        wanted = {"data.root": one.root, **{f"data.domains {name}": f"{one.root}/{name}" for name in one.domains}}
    wanted = {key: path for key, path in wanted.items() if path}
    missing = {key: path for key, path in wanted.items() if not expand(path).exists()}
    for key, path in missing.items():
        yield Finding(
            "fatal",
            f"{key}: no file or folder {path}",
            "correct the path, or the variable in it: FEDCMP_DATA, LLAVA_PRETRAIN",
        )
    if missing or (one.kind == "scenes" and config.model.llm == "demo"):
        return
    try:
        outline = check_models(config)
        if outline.max_tokens is None or outline.llm is None or outline.llm.text is None:
            return
        _, train, val, test = read_samples(config)
        cut = foresee_cut(config, {"train": train, "val": val, "test": test}, outline)
    except (ConfigError, DataError) as error:
        yield Finding("fatal", str(error), "correct the setting or the data that it names")
        return
    if (ids := outline.llm.text.num_tokens) > (rows := outline.llm.num_embeddings):
        line = f"model.llm: its tokenizer has {ids} tokens, but the LLM {rows} embeddings"
        yield Finding("warn", line, "resize the embeddings: captions with tokens that they lack are refused")
    for line in filter(None, (outline.warning, cut)):
        yield Finding("warn", line, "see docs/data.md")
    yield Finding("ok", f"data: {len(train):,} training samples; captions of up to {outline.max_tokens:,} tokens")


CHECKS: list[Check] = [
    packages, devices, threads, launchers, process_groups, weights_and_biases, folders, demo, models, data,
]  # fmt: skip
"""All checks, in their order."""
