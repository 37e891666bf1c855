"""A site's folder: made from a kit, and checked before a run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcmp.config import read_fields, to_yaml
from fedcmp.errors import ConfigError
from fedcmp.federation.checkpoint import load_projector, params_sha256
from fedcmp.federation.folder import RunFolder
from fedcmp.plain_yaml import parse_yaml, resolve
from fedcmp.sites.engine import engine
from fedcmp.sites.leaving import rehearse
from fedcmp.sites.settings import FILE, SiteSettings, parse_site, read_site, site_yaml
from fedcmp.staging import staged

KIT = "kit"
"""The kit, inside the site's folder."""


def init_site(kit: Path, out: Path | None, given: Mapping[str, str | None], overrides: list[str]) -> Path:
    """Unpacks a kit into a new folder with a site.yaml; all that will be in it is for its owner alone.

    Args:
        kit: the .zip of the site.
        out: the folder; None: named as the site.
        given: ``data``, ``tower`` and ``llm``, folders or None.
        overrides: ``key=value`` of site.yaml.

    Returns:
        The folder.

    Raises:
        ConfigError: the kit cannot be read, a folder is not there, or an override is wrong.
        RunFolderError: the folder is not empty.
    """
    values: dict[str, Any] = {"name": kit.stem}
    for key in ("tower", "llm"):
        if (path := given.get(key)) is not None:
            values[key] = str(_folder(path, f"--{key}", "config.json"))
    if given.get("data") is not None:
        values["data"] = find_data(Path(str(given["data"])).expanduser().resolve())
    text = site_yaml(values)
    for override in overrides:
        text = _with(text, override)
    parse_site(text, FILE)
    folder = out or Path(kit.stem)
    with staged(folder, "--folder") as partial:
        partial.chmod(0o700)
        unpack(kit, partial / KIT)
        (partial / FILE).write_text(text, encoding="utf-8")
    return folder


def unpack(kit: Path, target: Path) -> None:
    """Unpacks a kit into a new folder for its owner alone.

    Raises:
        ConfigError: it is no kit.
    """
    target.mkdir(mode=0o700)
    try:
        with zipfile.ZipFile(kit) as packed:
            for name in packed.namelist():
                place = (target / name).resolve()
                if not place.is_relative_to(target.resolve()):
                    raise ConfigError(f"{kit} is no kit of a site: it has {name}")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(packed.read(name))
        (target / "startup" / "client.key").chmod(0o600)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{kit} cannot be read as the kit of a site: {error}") from error
    (target / "transfer").mkdir(exist_ok=True)


def find_data(path: Path) -> dict[str, Any]:
    """The settings of ``data`` for a folder: one domain, domains side by side, or LLaVA's own layout.

    Raises:
        ConfigError: it is none of these.
    """
    if (path / "train.jsonl").is_file():
        return {"root": str(path.parent), "domains": [path.name]}
    if any(path.glob("[!.]*/train.jsonl")):
        return {"root": str(path)}
    records = {split: found for split in ("train", "val", "test") for found in sorted(path.glob(f"{split}.json"))}
    images = next((str(found) for name in ("images.zip", "images") if (found := path / name).exists()), None)
    if "train" in records and images:
        return {**{split: str(found) for split, found in records.items()}, "images": images}
    raise ConfigError(
        f"--data: {path} has no train.jsonl (a domain), no folder with one (domains), and no train.json with images; "
        "`fedcmp prepare` makes a domain"
    )


def check_site(folder: Path, config: Path | None) -> tuple[list[str], bool]:
    """What a run would take from a site, what its folder says, and whether its kit is as it should be.

    Returns:
        Lines for people, and whether nothing is wrong.
    """
    settings, certificate = read_site(folder), folder / KIT / "startup" / "client.crt"
    seen, leaves, fine = ["with --config RUN.yaml: what a run would take from this site"], list[str](), True
    if config is not None:
        text = certificate.read_text() if certificate.is_file() else ""
        seen, leaves, fine = rehearse(settings, config, text)
    lines = [f"site {settings.name}", "", *seen, "", "what the site allows (policy in site.yaml)"]
    lines += [f"  {key}: {_words(value)}" for key, value in vars(settings.policy).items()]
    if (folder / KIT).is_dir():
        lines += ["", "the kit"]
        for name, good, found in engine().check_kit(folder):
            lines.append(f"  {'ok   ' if good else 'wrong'} {name}: {found}")
            fine &= good
    else:
        lines += ["", f"there is no kit in {folder / KIT}"]
        fine = False
    if runs := [
        found for path in sorted((folder / "runs").glob("*")) if (found := RunFolder(path)).projector.is_file()
    ]:
        lines += ["", "runs, with projector_sha256 of what their projector.safetensors has now"]
        lines += [f"  {run.path.name}: {params_sha256(load_projector(run.projector))}" for run in runs]
    return [*lines, *([""] if leaves else []), *leaves], fine


def _folder(word: str, key: str, needed: str) -> Path:
    path = Path(word).expanduser().resolve()
    if not (path / needed).is_file():
        raise ConfigError(f"{key}: {path} has no {needed}")
    return path


def _with(text: str, override: str) -> str:
    """site.yaml with one value changed; ``read_site`` checks it."""
    key, _, word = override.partition("=")
    values = resolve(parse_yaml(text, FILE))
    inner = values
    *parts, last = key.split(".")
    for part in parts:
        inner = inner.setdefault(part, {})
    inner[last] = resolve(parse_yaml(word, f"override {key}"))
    text = to_yaml(values)
    read_fields(SiteSettings, text, f"override {key}")
    return text


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).lower()
