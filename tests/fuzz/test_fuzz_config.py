"""Any text is a valid config, which can be written down and read back, or an error that names the key."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
import yaml
from few import attempt, few
from hypothesis import example, given
from hypothesis import strategies as st

from fedcmp.config import Config, from_yaml, load_config, to_yaml
from fedcmp.errors import ConfigError

SHIPPED = sorted((Path(__file__).parent.parent.parent / "configs").rglob("*.yaml"))


def keys_of(kind: type, prefix: str = "") -> list[str]:
    """Every key that holds no keys of its own."""
    hints = typing.get_type_hints(kind)
    return [
        name
        for one in dataclasses.fields(kind)
        for name in (
            keys_of(hints[one.name], f"{prefix}{one.name}.")
            if dataclasses.is_dataclass(hints[one.name])
            else [f"{prefix}{one.name}"]
        )
    ]


KEYS = [*keys_of(Config), "aggregator", *(f"aggregator.{part}.method" for part in ("fuse", "server", "local"))]
KEYS += ["aggregator.fuse.tau", "aggregator.fuse.evidence", "aggregator.server.lr"]
ODD = [
    "", "~", "null", "yes", "-1", "0", "1e3", "1e400", ".nan", "-.inf", "007", "2026-11-25", "2020-99-99", "???", "[1]",
    "{a: 1}", "[[1]]", "[a, ~]", "{1: 2}", "${run.seed}", "${run.name}", "${x}", "a${b", "\\${x}", "${oc.env:NOWHERE}",
    "!!int abc", "!!bool x", "!!timestamp x", "!!python/object/apply:os.system [ls]", "!!set {a}", "&a [*a]", '"\\0"',
    '"\\ud800"', '"a\\nb"', "9" * 5000, "[" * 2000, "[" * 99 + "]" * 99, "{? [a] : b}", "a: b: c", "- x", "'",
    "\t", "%x",
]  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from(ODD)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


def is_whole(config: Config) -> None:
    """What a run writes down is what the run that goes on reads."""
    assert from_yaml(to_yaml(config), "config.yaml") == config


@given(st.sampled_from(KEYS), st.sampled_from(ODD) | TEXTS | VALUES.map(lambda value: yaml.safe_dump(value)))
@few(120)
@example("run.name", "1e3")
@example("optimizer.betas", "{a: 1}")
@example("aggregator.server.kind", "[1]")
def test_an_override_is_taken_or_named(key: str, text: str) -> None:
    config, message = attempt(lambda: load_config(None, [f"{key}={text}"]))
    if config is None:
        assert key.split(".")[-1] in message
    else:
        is_whole(config)


def replaced(path: Path, begin: int, length: int, junk: str) -> bytes:
    content = path.read_bytes()
    return content[:begin] + junk.encode() + content[begin + length :]


ANY = st.dictionaries(st.sampled_from(sorted({key.split(".")[0] for key in KEYS})) | TEXTS, VALUES, max_size=4)


@given(
    ANY.map(lambda content: yaml.safe_dump(content, allow_unicode=True).encode())
    | st.binary(max_size=200)
    | st.builds(
        replaced, st.sampled_from(SHIPPED), st.integers(0, 2000), st.integers(0, 20), TEXTS | st.sampled_from(ODD)
    )
)
@few(120)
def test_a_file_is_taken_or_refused(tmp_path: Path, content: bytes) -> None:
    """Of any values, of any bytes, and one that is shipped with a part of it replaced."""
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    config, message = attempt(lambda: load_config(path))
    if config is None:
        assert "mine.yaml" in message
    else:
        is_whole(config)


def test_a_few_lines_that_stand_for_billions_are_refused() -> None:
    """Each line names the one before ten times."""
    lines = ["a0: &a0 x", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    with pytest.raises(ConfigError, match=r"bomb\.yaml cannot be read as YAML: more than 100,000 values"):
        from_yaml("\n".join(lines), "bomb.yaml")


@pytest.mark.parametrize(("override", "expected"), [
    ("run.name=1e3", "1e3"), ("run.name=infinity", "infinity"), ("run.name=007", "007"), ("run.name=yes", "yes"),
    ("run.name=2026-11-25", "2026-11-25"), ("run.name='1e3'", "1e3"), ("run.name=null", None), ("run.name=", None),
    ("run.name=1:30", "1:30"),

])  # fmt: skip
def test_a_text_stays_as_it_was_typed(override: str, expected: str | None) -> None:
    """YAML would make 1000.0, inf, 7, True and a date of them."""
    assert load_config(None, [override]).run.name == expected
    assert from_yaml(f"run: {{name: {override.partition('=')[2]}}}", "mine.yaml").run.name == expected


def test_values_are_read_as_yaml_1_2_has_them() -> None:
    for text in ("exp #2", "a: b", "- a", "*a", "!a", "a,b", "it's", "1 'a'"):
        assert load_config(None, [f"run.name={text}", f"run.dir={text}"]).run.dir == text, "any text without quotes"
    for written, expected in (("010", 10), ("0o10", 8), ("0x10", 16), ("+4", 4)):
        assert load_config(None, [f"run.seed={written}"]).run.seed == expected
        config = from_yaml(f"{{run: {{seed: {written}}}, aggregator: {{server: {{lr: {written}}}}}}}", "mine.yaml")
        assert (config.run.seed, config.aggregator.server["lr"]) == (expected, expected)
    config = load_config(None, ["wandb.tags=[1e3, yes, 007]", "data.domains=[plain]", "optimizer.betas=[1e-1, 9e-1]"])
    assert config.wandb.tags == ["1e3", "yes", "007"]
    assert config.optimizer.betas == [0.1, 0.9]


@pytest.mark.parametrize("override", [
    "run.seed=???", "wandb.tags.0=a", "optimizer.betas={a: 1}", "aggregator.fuse.evidence='false'", "aggregator.fuse=3",
    "run.seed=2020-99-99", "federation.rounds=1:30", "federation.rounds=1e3", f"run.seed={'9' * 5000}",
    "run.figures=maybe", "model.tower=null", "run.name='exp' #2", 'run.dir="a\\0b"', "run.name=\\${x}",
    "launch.timeout=99999999999",
])  # fmt: skip
def test_what_fuzzing_found(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0].removesuffix(".0")):
        load_config(None, [override])
