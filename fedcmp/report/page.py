"""``fedcmp report``: one page that tells all of a run or of a comparison, and its figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedcmp.errors import RunFolderError
from fedcmp.federation.folder import RunFolder
from fedcmp.report.blocks import Page, Picture
from fedcmp.report.comparison.page import comparison_page
from fedcmp.report.comparison.results import is_comparison, read_comparison
from fedcmp.report.drawing.canvas import our_look
from fedcmp.report.drawing.vector import quietly, to_svg
from fedcmp.report.run.page import run_page
from fedcmp.report.run.reading import is_run, read_run


def write_report(folder: Path, *, figures: bool = True) -> Path:
    """Writes ``report/index.html`` into a run or comparison folder, and its figures into ``report/figures``.

    The page needs no network and no script. It shows what there is: also of a run that failed, was stopped, or is
    still going on. An older report is replaced.

    Args:
        folder: of a run (config.yaml, metrics.jsonl or summary.json) or of a comparison (compare.json or runs.jsonl).
        figures: save each figure as PNG and PDF, too; that takes most of the time.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: the folder is neither, a file in it is corrupted, or the report cannot be written.
    """
    if not folder.is_dir():
        raise RunFolderError(f"no folder {folder}; expected a run folder or a comparison folder")
    with our_look():
        if is_comparison(folder):
            page = comparison_page(read_comparison(folder))
        elif is_run(folder):
            page = run_page(read_run(folder))
        else:
            raise RunFolderError(
                f"{folder} is no run folder (it has no config.yaml, metrics.jsonl or summary.json) and no comparison "
                "folder (no compare.json or runs.jsonl)"
            )
        page = page.with_own_names()
        pictures = [picture for section in page.sections for picture in section.pictures]
        drawn = {picture.name: to_svg(picture.figure, picture.name, picture.alt) for picture in pictures}
        target = folder / "report" / "index.html"
        try:
            _save_figures(pictures if figures else [], target.parent / "figures")
        except OSError as error:
            raise RunFolderError(f"cannot write {target}: {error}; is there disk space and permission?") from error
    RunFolder(folder).write_text(target, render(page, drawn))
    return target


def render(page: Page, drawn: dict[str, Markup]) -> str:
    """The page as HTML; all text is escaped.

    Args:
        page: what it says.
        drawn: the figures by name, as SVG.
    """
    here = resources.files("fedcmp.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = Markup(here.joinpath("page.css").read_text(encoding="utf-8"))
    template = environment.from_string(here.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(page=page, drawn=drawn, style=style)


def _save_figures(pictures: Sequence[Picture], folder: Path) -> None:
    """PNG and PDF of each picture on white; figures of an older report that no longer exist are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.png"), *folder.glob("*.pdf")]:
        old.unlink()
    for picture in pictures:
        quietly(picture.figure, folder / f"{picture.name}.png", dpi=200, facecolor="white")
        quietly(picture.figure, folder / f"{picture.name}.pdf", facecolor="white", metadata={"CreationDate": None})
