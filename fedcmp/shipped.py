"""The configs that come with fedcmp: inside the package where it is installed, beside it in a checkout."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from fedcmp.errors import ConfigError, nearest

INSIDE = Path(__file__).parent / "configs"
FOLDER = INSIDE if INSIDE.is_dir() else Path(__file__).parent.parent / "configs"
"""Where they are."""


def shipped() -> dict[str, Path]:
    """Every shipped config, by its name: ``demo/scenes`` and so on.

    >>> shipped()["demo/scenes"].name
    'scenes.yaml'
    """
    return {_name(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*.yaml"))}


def find_config(path: Path) -> Path:
    """The file that a CONFIG means: one that is there, else a shipped one, with or without ``configs/`` and ``.yaml``.

    >>> find_config(Path("configs/demo/scenes.yaml")).samefile(find_config(Path("demo/scenes")))
    True

    Raises:
        ConfigError: there is none; the message has the nearest shipped one.
    """
    if path.is_file():
        return path
    known = shipped()
    name = _name(Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path)
    if name in known:
        return known[name]
    if path.exists():  # a pipe, or something that reading will complain of
        return path
    # a name is not near because it is in the same folder
    near = [one for one in known if get_close_matches(Path(name).name, [Path(one).name], cutoff=0.5)]
    hint = nearest(name, near, "`fedcmp configs` lists those")
    raise ConfigError(
        f"no config file {path}, and fedcmp has none of that name; {hint}; overrides are written key=value"
    )


def about(path: Path) -> str:
    """What the comment at the top of a config says, in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    words = []
    for line in lines:
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# ").strip())
    return " ".join(words)


def _name(path: Path) -> str:
    return path.with_suffix("").as_posix() if path.suffix in (".yaml", ".yml") else path.as_posix()
