"""The checks of the doctor: each looks at one thing and returns findings. Nothing is changed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedcmp.config import Config
from fedcmp.data.scenes import CAMERAS, make_scene, render
from fedcmp.data.settings import DataConfig, expand
from fedcmp.distributed.launch import started_by
from fedcmp.distributed.probe import LAUNCHER_VARIABLES, Meeting, meet
from fedcmp.errors import CheckpointError, ConfigError, DataError
from fedcmp.export.read import read_projector
from fedcmp.federation.folder import LEAST_FREE
from fedcmp.models.backbones import ModelConfig, load_llm, load_tower
from fedcmp.models.outline import outline_llm, outline_tower
from fedcmp.runs.data import read_samples
from fedcmp.runs.models import check_models, count_cut, describe_cut
from fedcmp.tracking.wandb import WandbConfig, has_key

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


def ok(what: str, hint: str = "") -> Finding:
    return Finding("ok", what, hint)


def warn(what: str, mend: str) -> Finding:
    return Finding("warn", what, mend)


def fatal(what: str, mend: str) -> Finding:
    return Finding("fatal", what, mend)


def python(version: str | None = None) -> Finding:
    """Whether Python is new enough."""
    version = version or platform.python_version()
    try:
        wanted = metadata.metadata("fedcmp")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return warn(f"Python {version}; fedcmp is not installed, so its requirements are unknown", INSTALL)
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return ok(f"Python {version}")
    return fatal(f"Python {version}, but fedcmp needs {wanted}", "make an environment with a newer Python")


def packages(version_of: Callable[[str], str] = metadata.version) -> list[Finding]:
    """Whether every package is in the range of pyproject.toml: a line for all, or for each that is not."""
    try:
        required = [Requirement(text) for text in metadata.requires("fedcmp") or []]
    except metadata.PackageNotFoundError:
        return []  # the line of Python says so
    found, wrong = [], []
    for one in required:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = version_of(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(fatal(f"{one.name} is missing; fedcmp needs {one}", INSTALL))
            continue
        if one.specifier.contains(version, prereleases=True):
            found.append(f"{one.name} {version}")
        else:
            wrong.append(warn(f"{one.name} is {version}, outside {one.specifier}", INSTALL))
    return wrong or [ok(f"packages: {', '.join(sorted(found))}")]


class Gpu(NamedTuple):
    """One GPU; bytes."""

    name: str
    free: int
    total: int


class Cuda(NamedTuple):
    """What torch and the driver report."""

    build: str | None
    """The CUDA version that torch was built for; None: a CPU build."""
    driver: str | None
    """The NVIDIA driver's version; None: there is none."""
    gpus: tuple[Gpu, ...]
    """Those that torch can use."""
    remark: str
    """The first warning of torch, or empty."""


def read_cuda() -> Cuda:
    """The GPUs of this machine."""
    gpus, remarks = [], []
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        try:
            for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
                gpus.append(Gpu(torch.cuda.get_device_name(number), *torch.cuda.mem_get_info(number)))
        except RuntimeError as error:  # for example a GPU that lets one process in, and has one
            remarks.append(f"cuda:{len(gpus)}: {error}")
    remarks += [str(one.message) for one in raised]
    return Cuda(torch.version.cuda, _driver(), tuple(gpus), remarks[0].splitlines()[0] if remarks else "")


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def devices(cuda: Cuda, wanted: str) -> list[Finding]:
    """Whether torch can use the GPUs of a machine; ``wanted`` is ``run.device``."""
    found = []
    for number, gpu in enumerate(cuda.gpus):
        what = f"cuda:{number} {gpu.name}, {gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free, CUDA {cuda.build}"
        what += f", driver {cuda.driver}" if cuda.driver else ""
        busy = gpu.free < gpu.total / 2
        found.append(warn(what, "another process uses it: see nvidia-smi") if busy else ok(what))
    if found:
        remark = warn(f"torch says: {cuda.remark}", "install a build of torch that knows these GPUs")
        return [*found, *([remark] if cuda.remark else [])]
    bad, what = fatal if wanted == "cuda" else warn, f"torch {torch.__version__}"
    if cuda.driver and cuda.build is None:
        what += f" is a CPU build, but this machine has an NVIDIA driver ({cuda.driver})"
        return [bad(what, "install torch's CUDA build to use the GPU (pytorch.org, Get Started)")]
    if cuda.driver:
        what += f" is built for CUDA {cuda.build} and cannot use the driver {cuda.driver}: {cuda.remark or 'no GPU'}"
        return [bad(what, "update the driver, install a torch for an older CUDA, or see CUDA_VISIBLE_DEVICES")]
    what = f"cpu; {what}, {'a CPU build' if cuda.build is None else f'CUDA {cuda.build}'}, no GPU"
    if wanted == "cuda":
        return [fatal(f"run.device is cuda, but: {what}", "use run.device=auto, or a machine with a GPU")]
    return [ok(what)]


def threads(environment: Mapping[str, str], ranks: int, cores: int | None = None) -> Finding:
    """Whether ranks share the cores: with more threads than cores a run is many times slower.

    Args:
        environment: for OMP_NUM_THREADS.
        ranks: processes that a run starts on this machine.
        cores: those that this process may use; None: ask.
    """
    cores = cores or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    share, text = max(1, cores // ranks), environment.get("OMP_NUM_THREADS")
    if text is not None and not (text.isdecimal() and int(text) > 0):
        return warn(f"OMP_NUM_THREADS is {text!r}, which is no number of threads", f"export OMP_NUM_THREADS={share}")
    # torchrun gives each of several ranks one thread by default
    each = int(text) if text else 1 if ranks > 1 else cores
    what = f"{cores} cores; {ranks} x {each} threads{'' if text else ' (OMP_NUM_THREADS is not set)'}"
    if each * ranks > cores:
        mend = f"export OMP_NUM_THREADS={share}" if each > share else f"lower launch.devices to {cores}"
        return warn(f"{what}: more threads than cores", mend)
    return ok(what)


def left_overs(environment: Mapping[str, str]) -> Finding:
    """Whether variables of a launcher are set where there is none."""
    found = [name for name in LAUNCHER_VARIABLES if name in environment]
    if "TORCHELASTIC_RUN_ID" in environment or environment.get("LT_CLI_USED") == "1":
        return ok("launched by torchrun or `fabric run`")
    if not {"RANK", "WORLD_SIZE"} & set(found):
        return ok("no left-overs of a launcher")
    return warn(
        f"{', '.join(found)} set, but neither torchrun nor `fabric run` runs: a run would wait for other ranks",
        f"unset {' '.join(found)}, unless a launcher of your own sets them",
    )


def slurm(environment: Mapping[str, str], which: Callable[[str], str | None] = shutil.which) -> Finding:
    """Where this process is in SLURM, and how a run is started from there.

    Args:
        environment: SLURM's variables.
        which: a program's path, or None.
    """
    tools = [tool for tool in ("srun", "sbatch") if which(tool)]
    job, tasks = environment.get("SLURM_JOB_ID"), environment.get("SLURM_NTASKS", "1")
    if job is None:
        return ok("SLURM: outside of an allocation", f"to start a run: {SBATCH}") if tools else ok("no SLURM here")
    if started_by(environment) == "srun":
        return ok(f"SLURM: rank {environment['SLURM_PROCID']} of a step of {environment['SLURM_STEP_NUM_TASKS']}")
    if "srun" not in tools:
        return warn(f"SLURM: inside job {job}, but srun is not found", "put SLURM's programs on the PATH")
    if tasks.isdecimal() and int(tasks) > 1 and started_by(environment) == "none":
        what = f"SLURM: job {job} has {tasks} tasks, but this process is no step of several: it would be the only rank"
        return warn(what, f"srun fedcmp train CONFIG, or {SBATCH}")
    return ok(f"SLURM: inside job {job}, tasks: {tasks}")


def process_group(backend: str, num_ranks: int, needed: bool, probe: Callable[..., Meeting] = meet) -> Finding:
    """Whether ranks can meet.

    Args:
        backend: ``gloo`` or ``nccl``.
        num_ranks: how many try.
        needed: the run has several ranks; else it is only a warning.
        probe: starts them.
    """
    result = probe(backend, num_ranks)
    if result.met:
        return ok(f"{backend}: {num_ranks} ranks met in {result.seconds:.0f} seconds, with imports")
    mend = "set NCCL_DEBUG=INFO and try `fedcmp train launch.devices=2`"
    if backend == "gloo":
        mend = "name a network interface that is up (ip -br addr), for example GLOO_SOCKET_IFNAME=lo"
    return (fatal if needed else warn)(f"{backend}: {num_ranks} ranks cannot meet: {result.reason}", mend)


def weights_and_biases(config: WandbConfig, environment: Mapping[str, str]) -> Finding:
    """Whether W&B can be reached as the config wants it; a key is looked for and never shown."""
    if config.mode != "online" or has_key(environment):
        return ok(f"Weights & Biases: {config.mode}")
    return fatal(
        "Weights & Biases: online, but there is no key",
        "wandb login, or set WANDB_API_KEY, or use wandb.mode=offline and `wandb sync` later",
    )


def writable(folder: Path, what: str, key: str) -> Finding:
    """Whether a folder can be made and written, and how much room it has. A test file is made and removed.

    Args:
        folder: may not exist yet.
        what: what it is for.
        key: the setting that moves it.
    """
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place) as probe:
            probe.write(b"0")
            probe.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        return fatal(f"{what}: {folder} cannot be written ({error.strerror or error})", f"set {key} to another place")
    line = f"{what}: {folder}, {free / 1e9:.1f} GB free"
    if free >= COMFORTABLE:
        return ok(line)
    return (fatal if free < LEAST_FREE else warn)(line, f"make room, or set {key} to another disk")


def shared_data(environment: Mapping[str, str]) -> Finding:
    """Whether the folder of real pairs and weights is there; only configs that use it need it."""
    named = environment.get("FEDCMP_DATA")
    folder = Path(named or "../shared/data")
    missing = [part for part in ("pairs", "weights") if not (folder / part).is_dir()]
    if not missing:
        return ok(f"FEDCMP_DATA: {folder}")
    if named:
        return warn(f"FEDCMP_DATA: {folder} has no {' and no '.join(missing)}", "correct it; the demo needs none")
    return ok("FEDCMP_DATA: not set, and no ../shared/data; the demo and data of your own need none")


def demo() -> Finding:
    """Whether the embedded models load and encode an embedded picture."""
    try:
        tower, llm = load_tower(ModelConfig()), load_llm(ModelConfig())
        features = tower.encode(tower.preprocess([render(make_scene("val", next(iter(CAMERAS)), 0))]))
    except Exception as error:  # the remedy is the same for any
        what = " ".join(f"the embedded demo does not load: {type(error).__name__}: {error}".split())
        return fatal(what, "install fedcmp anew, models and all: pip install --force-reinstall --no-deps -e .")
    return ok(f"the embedded demo loads: {features.shape[1]} tokens of width {tower.width} into width {llm.width}")


def models(config: ModelConfig) -> list[Finding]:
    """Whether the models of a config can be read here, without their weights, and the projector to start from."""
    found = []
    for key, name, outline in (("tower", config.tower, outline_tower), ("llm", config.llm, outline_llm)):
        if name != "demo":
            found.append(_model(f"model.{key}", name, config, outline))
    if config.projector.init is not None:
        found.append(_projector(config.projector.init))
    return found


def _model(key: str, name: str, config: ModelConfig, outline: Callable[[ModelConfig], object]) -> Finding:
    try:
        if outline(config) is not None:
            return ok(f"{key}: {name}")
    except ConfigError as error:
        return fatal(str(error), f"correct {key}")
    if Path(name).expanduser().is_dir():
        return warn(f"{key}: {name} is unknown to transformers", "correct its config.json and preprocessor_config.json")
    return warn(f"{key}: {name} is not on this machine", "a run fetches it; or fetch it before: hf download NAME")


def _projector(path: str) -> Finding:
    try:
        read_projector(expand(path))
    except CheckpointError as error:
        return fatal(f"model.projector.init: {error}", "correct the path")
    return ok(f"model.projector.init: {path}")


def captions(config: Config) -> list[Finding]:
    """Whether the LLM of a config can read the captions of its data."""
    found = []
    try:
        outline = check_models(config)
        encoder, warning = outline.encoder, outline.warning
        if encoder is None or outline.llm is None:
            return []
        _, train, val, test = read_samples(config)
        cut = describe_cut(count_cut({"train": train, "val": val, "test": test}, encoder), encoder)
    except (ConfigError, DataError) as error:
        return [fatal(str(error), "correct the setting or the data that it names")]
    if (ids := len(outline.llm.tokenizer)) > encoder.num_embeddings:
        line = f"model.llm: its tokenizer has {ids} tokens, but the LLM {encoder.num_embeddings} embeddings"
        found.append(warn(line, "resize the embeddings: captions with tokens that they lack are refused"))
    found += [warn(line, "see docs/data.md") for line in (warning, cut) if line]
    return found or [ok(f"captions: all fit into {encoder.max_tokens:,} tokens")]


def data(config: DataConfig) -> list[Finding]:
    """Whether the files and folders of the data are there; records are not read."""
    if config.kind == "scenes":
        return []
    if config.kind == "file":
        named = {key: getattr(config, key) for key in ("train", "val", "test", "images")}
        wanted = {f"data.{key}": path for key, path in named.items() if path}
    else:
        folders = [f"{config.root}/{domain}" for domain in config.domains]
        wanted = {"data.root": config.root, **{f"data.domains {path}": path for path in folders}}
    missing = [
        fatal(f"{key}: no file or folder {path}", "correct the path, or FEDCMP_DATA")
        for key, path in wanted.items()
        if not expand(path or "").exists()
    ]
    return missing or [ok(f"data: {', '.join(str(path) for path in list(wanted.values())[:4])}")]
