"""``fedcmp prepare``: its options, and its report."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fedcmp.data.settings import DataConfig
from fedcmp.errors import FedcmpError, PlanError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fedcmp prepare``."""
    parser.add_argument("layout", metavar="LAYOUT", help="how the set lies on disk; one of the above")
    parser.add_argument("words", nargs="+", metavar="SOURCE", help="its files, its folder, a glob, or a brace list")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="ROOT/DOMAIN", help="the new folder; ROOT is data.root of a run"
    )
    parser.add_argument("--domain", metavar="NAME", help="what the domain is called (the folder's name)")
    parser.add_argument("--images", type=Path, metavar="DIR_OR_ZIP", help="the pictures (where the set has them)")
    for name, text in (
        ("val", "pictures held out for validation (the set's own; else 512, at most 5 %%)"),
        ("test", "pictures held out for the test (likewise); 0: half of the validation pictures, at run time"),
        ("limit", "so many records only, drawn at random: for a trial"),
    ):
        parser.add_argument(f"--{name}", metavar="N", type=int, help=text)
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of all draws (0)")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad records out and count them")
    parser.add_argument("--check", action="store_true", help="decode every picture: a corrupted one is a bad record")
    parser.add_argument(
        "--max-pixels", metavar="N", type=int, default=DataConfig.max_pixels,
        help="with --check: larger pictures are bad records, as data.max_pixels in a run (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--copy", action="store_true", help="pack the pictures into a new images.zip, do not link them")
    parser.add_argument("--licence", "--license", metavar="TEXT", help="what the set may be used for, for source.json")
    for name, text in (
        ("image-column", "csv: the column with the path of the picture (image)"),
        ("caption-column", "csv: the column with the caption (caption)"),
        ("label-column", "csv: a column that says what the picture shows, in a word"),
        ("id-column", "csv: a column with a unique id (the path is the id)"),
        ("group-column", "csv: a column, for example of patients, whose pictures stay on one side of a split"),
        ("client-column", "csv: a column with the owner of the row, for example an institution: clients of a run"),
        ("caption-key", "webdataset: the key of the .json files with the caption (caption, if there is no .txt)"),
    ):
        parser.add_argument(f"--{name}", metavar="NAME", help=text)


def prepare(parsed: argparse.Namespace) -> int:
    """turn a public set, or your own pictures, into a domain

    Writes the folder of one domain: records by split, and pictures, linked where they are or packed. A folder with a
    folder per domain is data.root of a run with data.kind=pairs. Equal pictures are never on both sides of a split.
    Layouts: llava, llava-med, messages, roco, rsicd, nwpu, coco, webdataset, and csv for a table of your own. See
    docs/data.md.

    examples:
      fedcmp prepare llava LLaVA-Pretrain --out data/web --licence 'see its card'               as downloaded
      fedcmp prepare csv notes.csv --caption-column report --out data/clinic                    a table of your own
    """
    from fedcmp.data.prepare import UNKNOWN, Recipe, prepare
    from fedcmp.data.readers import Options

    names = ("layout", "domain", "val", "test", "limit", "seed", "skip_bad", "check", "max_pixels", "copy")
    recipe = Recipe(
        sources=tuple(parsed.words),
        out=parsed.out.expanduser(),
        images=parsed.images and parsed.images.expanduser(),
        licence=parsed.licence or UNKNOWN,
        options=Options(**{name: getattr(parsed, name) for name in Options._fields}),
        **{name: getattr(parsed, name) for name in names},
    )
    facts = prepare(recipe, lambda line: print(line, file=sys.stderr, flush=True))
    counts, left, images = facts["counts"], facts["left_out"], facts["images"]
    whose = "the set's own" if facts["splits"] == "own" else "drawn"
    print(
        f"wrote {recipe.out}: {counts['train']:,} training, {counts['val']:,} validation and {counts['test']:,} test "
        f"samples (splits {whose}); pictures {images['kind']}" + (f" from {images['from']}" if images["from"] else "")
    )
    if left["bad"]:
        print(f"left out {left['bad']:,} bad records, the first: {left['first_bad'][0]}")
    if facts["repeated_rows"]:
        print(f"left out {facts['repeated_rows']:,} rows that repeat another, picture and caption")
    for kind, count in left["bad_by_kind"].items():
        if kind != "bad records":
            print(f"among them {count:,} {kind}")
    if facts["further_answers"]:
        print(f"kept {facts['further_answers']:,} answers after the first: data.turns=all trains on them, too")
    if parsed.layout == "csv" and (lines := facts["captions_of_several_lines"]):
        print(f"{lines:,} captions have several lines; if yours have one, a double quote was not closed")
    if left["held_out_elsewhere"]:
        print(f"left out {left['held_out_elsewhere']:,} samples whose picture is held out elsewhere")
    print(f"the longest caption has {facts['most_words']:,} words; fedcmp plan counts those that the LLM cuts")
    print(f"next: {_next(recipe.out, parsed.client_column is not None)}")
    return 0


def _next(folder: Path, given: bool) -> str:
    """A plan of what lies beside ``folder``, or of that domain alone, with settings that fit it."""
    from fedcmp.config import load_config
    from fedcmp.runs.data import read_data

    words = ["data.kind=pairs", f"data.root={folder.parent}", *(["partition.clients=given"] if given else [])]
    for chosen in (words, [*words, f"data.domains=[{folder.name}]"]):
        fitting: list[str] = []
        try:
            read_data(load_config(None, chosen))
        except PlanError as error:
            fitting = error.overrides.split()
        except FedcmpError:  # a folder beside it is bad, or names no clients
            continue
        break
    return shlex.join(["fedcmp", "plan", *chosen, *fitting])
