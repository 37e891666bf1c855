"""``fedcmp prepare``: a public set, or pictures of one's own, as a domain."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fedcmp.errors import FedcmpError, PlanError

FEW = 40
"""Below so many test samples there is a hint."""


def prepare(parsed: argparse.Namespace) -> int:
    """turn a public set, or your own pictures, into a domain

    Writes the folder of one domain: records by split, and pictures, linked where they are or packed. A folder with a
    folder per domain is data.root of a run with data.kind=pairs. Equal pictures are never on both sides of a split.
    Layouts: llava, llava-med, messages, roco, rsicd, nwpu, coco, webdataset, and csv for a table of your own. See
    docs/data.md.

    options:
      LAYOUT  how the set lies on disk; one of the above
      SOURCE...  its files, its folder, a glob, or a brace list
      --out ROOT/DOMAIN  the new folder; ROOT is data.root of a run (required)
      --domain NAME  what the domain is called (the folder's name)
      --images DIR_OR_ZIP  the pictures (where the set has them)
      --val N  pictures held out for validation (the set's own; else 512, at most 5 %)
      --test N  pictures held out for the test (likewise); 0: half of the validation pictures, at run time
      --limit N  so many records only, drawn at random: for a trial
      --seed N  of all draws (0)
      --skip-bad  leave bad records out and count them
      --check  decode every picture: a corrupted one is a bad record
      --max-pixels N  with --check: larger pictures are bad records (as data.max_pixels in a run)
      --copy  pack the pictures into a new images.zip, do not link them
      --licence, --license TEXT  what the set may be used for, for source.json
      --image-column NAME  csv: the column with the path of the picture (image)
      --caption-column NAME  csv: the column with the caption (caption)
      --label-column NAME  csv: a column that says what the picture shows, in a word
      --id-column NAME  csv: a column with a unique id (the path is the id)
      --group-column NAME  csv: a column, for example of patients, whose pictures stay on one side of a split
      --client-column NAME  csv: a column with the owner of the row, for example an institution: clients of a run
      --caption-key NAME  webdataset: the key of the .json files with the caption (caption, if there is no .txt)

    examples:
      fedcmp prepare llava LLaVA-Pretrain --out data/web --licence 'see its card'               as downloaded
      fedcmp prepare csv notes.csv --caption-column report --out data/clinic                    a table of your own
    """
    from fedcmp.data.prepare import UNKNOWN, Recipe, prepare
    from fedcmp.data.readers import Options
    from fedcmp.data.settings import DataConfig

    recipe = Recipe(
        sources=tuple(parsed.words),
        out=Path(parsed.out).expanduser(),
        images=parsed.images and Path(parsed.images).expanduser(),
        licence=parsed.licence or UNKNOWN,
        options=Options(**{name: getattr(parsed, name) for name in Options._fields}),
        seed=parsed.seed or 0,
        max_pixels=DataConfig.max_pixels if parsed.max_pixels is None else parsed.max_pixels,
        **{name: getattr(parsed, name) for name in ("layout", "domain", "val", "test", "limit")},
        **{name: getattr(parsed, name) for name in ("skip_bad", "check", "copy")},
    )
    facts = prepare(recipe, lambda line: print(line, file=sys.stderr, flush=True))
    counts, left, images = facts["counts"], facts["left_out"], facts["images"]
    whose = "the set's own" if facts["splits"] == "own" else "drawn"
    print(
        f"wrote {recipe.out}: {counts['train']:,} training, {counts['val']:,} validation and {counts['test']:,} test "
        f"samples (splits {whose}); pictures {images['kind']}" + (f" from {images['from']}" if images["from"] else "")
    )
    repeated, further, left_elsewhere = facts["repeated_rows"], facts["further_answers"], left["held_out_elsewhere"]
    kinds = "".join(f"; {count:,} {kind}" for kind, count in left["bad_by_kind"].items() if kind != "bad records")
    lines = facts["captions_of_several_lines"] if parsed.layout == "csv" else 0
    for count, line in (
        (left["bad"], f"left out {left['bad']:,} bad records, the first: {(left['first_bad'] or [''])[0]}{kinds}"),
        (repeated, f"left out {repeated:,} rows that repeat another, picture and caption"),
        (further, f"kept {further:,} answers after the first: data.turns=all trains on them, too"),
        (lines, f"{lines:,} captions have several lines; if yours have one, a double quote was not closed"),
        (0 < counts["test"] < FEW, f"fewer than {FEW} test samples say little: --val N and --test N hold out more"),
        (left_elsewhere, f"left out {left_elsewhere:,} samples whose picture is held out elsewhere"),
    ):
        if count:
            print(line)
    print(f"the longest caption has {facts['most_words']:,} words; fedcmp plan counts those that the LLM cuts")
    print(f"next: {_next(recipe.out, parsed.client_column is not None)}")
    print(f"or at a site: {shlex.join(['fedcmp', 'site', 'init', 'KIT.zip', '--data', str(recipe.out)])}")
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
