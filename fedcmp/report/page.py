"""``fedcmp report``: one page about a run or a comparison, and its figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedcmp.errors import RunFolderError
from fedcmp.federation.folder import RunFolder
from fedcmp.report.alone import beside_alone
from fedcmp.report.blocks import Page
from fedcmp.report.comparison.page import comparison_page
from fedcmp.report.comparison.results import Comparison, is_comparison
from fedcmp.report.figures import as_data_uri, figure_style, save_figure
from fedcmp.report.run.page import run_page
from fedcmp.report.run.reading import Run, is_run, refuse_site
from fedcmp.staging import writing


def write_report(folder: Path, *, figures: bool = True, beside: Sequence[Path] = ()) -> Path:
    """Writes ``report/index.html`` into a run or comparison folder, and its figures into ``report/figures``.

    The page needs no network and no script. It shows what there is: also of a run that failed, was stopped, or is
    still going on. An older report is replaced.

    Args:
        folder: of a run (config.yaml, metrics.jsonl or summary.json) or of a comparison (compare.json or runs.jsonl).
        figures: save each figure as PNG and PDF, too; that takes most of the time.
        beside: run folders; of a local run and others on the same samples and clients, the page of each has both.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: the folder is neither, a file in it is corrupted, or the report cannot be written.
    """
    target = folder / "report" / "index.html"
    with figure_style():
        if is_comparison(folder):
            page = comparison_page(Comparison(folder))
        elif is_run(folder):
            run = Run(folder)
            refuse_site(folder, run.summary)
            page = run_page(run, beside_alone([*dict.fromkeys([folder, *beside])]))
        else:
            raise RunFolderError(
                f"{folder} has neither a run (config.yaml, metrics.jsonl, summary.json) nor a comparison "
                "(compare.json, runs.jsonl)"
            )
        html = render(page)
        with writing(target):
            _save_figures(page, target.parent / "figures", figures)
    RunFolder(folder).write_text(target, html)
    return target


def render(page: Page) -> str:
    """The page as HTML; all text is escaped, figures are SVG images inside it."""
    here = resources.files("fedcmp.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = Markup(here.joinpath("page.css").read_text(encoding="utf-8"))
    template = environment.from_string(here.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(page=page, style=style, source=as_data_uri)


def _save_figures(page: Page, folder: Path, wanted: bool) -> None:
    """PNG and PDF of each picture; those of an older report are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.png"), *folder.glob("*.pdf")]:
        old.unlink()
    for picture in (one for section in page.sections for one in section.pictures if wanted):
        save_figure(picture.figure, folder / f"{picture.name}.png", dpi=200)
        save_figure(picture.figure, folder / f"{picture.name}.pdf", metadata={"CreationDate": None})
