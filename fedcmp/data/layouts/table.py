"""A table beside a folder of pictures: people's own data. A row a caption; columns have names in the first row.

Cells are parted by commas, semicolons or tabs, whichever parts the wanted columns.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedcmp.data.layouts.base import Item, Layout, Options, Repeated, beside, each, item
from fedcmp.errors import ConfigError, DataError, nearest
from fedcmp.seeding import derive

DELIMITERS = (",", ";", "\t")


def read(path: Path, options: Options) -> Iterator[Item | DataError]:
    """The rows of one table. Without a column of ids, the picture's path is the id, and for its further rows a number
    behind it. A row that repeats another one in all columns but the id is a ``Repeated``.

    Raises:
        ConfigError: a column is not in the table.
        DataError: the table is missing, empty or not UTF-8, or a double quote is not closed.
    """
    image, caption = options.image_column or "image", options.caption_column or "caption"
    more = {"--label-column": options.label_column, "--id-column": options.id_column,
            "--group-column": options.group_column, "--client-column": options.client_column}  # fmt: skip
    wanted = {"--image-column": image, "--caption-column": caption, **{key: name for key, name in more.items() if name}}
    delimiter = _delimiter(path, wanted)
    seen: Counter[str] = Counter()
    rows: set[int] = set()

    def parse(record: object, origin: str) -> Item:
        assert isinstance(record, dict)
        if None in record:
            raise DataError(
                f"{origin}: more cells than the {len(record) - 1} columns; a text that holds {delimiter!r} must stand "
                "in double quotes"
            )
        name = record[options.id_column or image]
        if not options.id_column and name:
            seen[name] += 1
            name += f"#{seen[name]}" if seen[name] > 1 else ""
        client = (record[options.client_column] or "").strip() if options.client_column else None
        if client is not None and not (client and client.isprintable()):
            raise DataError(f"{origin}: field `{options.client_column}` must name a client, got {client!r}")
        found = item(
            name,
            [record[image]],
            [record[caption]],
            origin,
            fields=(options.id_column or image, image, caption),
            label=record[options.label_column] if options.label_column else None,
            group=record[options.group_column] if options.group_column else None,
        )._replace(client=client)
        row = derive(0, "row", *map(str, found._replace(id="", origin="")))
        if row in rows:
            raise Repeated(f"{origin}: says what an earlier row says")
        rows.add(row)
        return found

    yield from each(_rows(path, delimiter), parse)


def _rows(path: Path, delimiter: str) -> Iterator[tuple[str, object]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter=delimiter, strict=True)  # else a quote that is not closed takes all rows
        while True:
            start = table.line_num + 1
            try:
                if start == 1 and table.fieldnames:
                    continue
                row = next(table)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise _not_utf8(path, error) from error
            except csv.Error as error:
                raise DataError(
                    f"{path}:{start}: cannot be read: {error}; the double quote that opens a text must be closed, and "
                    "those inside a text stand twice"
                ) from error
            yield f"{path}:{table.line_num}", row


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """Names the line: the reader decodes many at once."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as found:
                return DataError(f"{path}:{number}: cannot be read: {found}; save it as CSV in UTF-8")
    return DataError(f"{path}: cannot be read: {error}; save it as CSV in UTF-8")


def _delimiter(path: Path, wanted: dict[str, str]) -> str:
    """The first that parts the header into all wanted columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    if not line.strip():
        raise DataError(f"{path}: the first line is empty; expected the names of columns")
    headers = {delimiter: next(csv.reader([line], delimiter=delimiter)) for delimiter in DELIMITERS}
    for delimiter, header in headers.items():
        if all(name in header for name in wanted.values()):
            repeated = [name for name in wanted.values() if header.count(name) > 1]
            if repeated:
                raise DataError(f"{path}:1: column {repeated[0]!r} stands twice")
            return delimiter
    best = max(headers.values(), key=len)
    option, name = next((option, name) for option, name in wanted.items() if name not in best)
    raise ConfigError(f"{option}: no column {name!r} in {path}; {nearest(name, best)}")


def images(files: Sequence[Path]) -> list[Path]:
    """The folder ``images`` or ``pictures`` beside the table, else the folder of the table."""
    return beside(files, "images", "images.zip", "pictures", "pictures.zip", ".")


LAYOUT = Layout(
    read,
    ("*.csv", "*.tsv"),
    False,
    images,
    frozenset({"image_column", "caption_column", "label_column", "id_column", "group_column", "client_column"}),
)
