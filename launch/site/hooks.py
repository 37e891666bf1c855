"""What mkdocs does beside Markdown: formulas as MathML, pictures of ours in the page itself, pages from outside docs/.

All of it happens while the site is built, so that a browser loads nothing from anywhere else. The pages read well on
GitHub, too, which knows ``$...$`` and shows pictures as they are.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.append(str(Path(__file__).parent))

import reference

ROOT = Path(__file__).parent.parent.parent
ELSEWHERE = {
    "study.md": "benchmarks/STUDY.md",
    "study_data.md": "benchmarks/DATA.md",
    "results.md": "benchmarks/RESULTS.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages that live beside the code that they are about: their place in the site, and in the repository."""
FIGURES = "benchmarks/results"
"""Where the figures of results.md lie; the site has them under the last part of this, as the page names them."""
MATHS = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
"""How the extension arithmatex marks a formula."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from elsewhere with their figures, and the reference of commands and names."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, content in (("commands.md", reference.commands()), ("names.md", reference.names())):
        files.append(File.generated(config, page, content=content))
    for path in sorted((ROOT / FIGURES).glob("*.png")):
        place = path.relative_to((ROOT / FIGURES).parent).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leads links that are right in the repository to the same pages of the site."""
    for name, source in ELSEWHERE.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}")
        if page.file.src_uri in ELSEWHERE:  # pages from elsewhere name their neighbours
            markdown = markdown.replace(f"]({Path(source).name}", f"]({name}")
    return re.sub(r"\]\((\.\./)?docs/", "](", markdown) if page.file.src_uri in ELSEWHERE else markdown


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Sets formulas, and puts our pictures into the page, where they know its colours."""
    where = page.file.src_uri
    content = MATHS.sub(lambda found: mathml(html.unescape(found[2]), where), content)
    content = re.sub(r"<code>([^<\s]{16,})</code>", lambda found: f"<code>{_breakable(found[1])}</code>", content)
    return re.sub(r'<img alt="([^"]*)" src="(assets/[^"]+\.svg)" */?>', lambda found: _inline(*found.groups()), content)


def mathml(formula: str, where: str) -> str:
    r"""MathML of ``\(...\)`` (in a line) or ``\[...\]`` (on its own).

    Raises:
        PluginError: a command is unknown; it would be shown as it is written.
    """
    formula = formula.strip()
    block, inside = formula.startswith(r"\["), formula[2:-2].strip()
    try:
        found = convert(inside, display="block" if block else "inline")
    except Exception as error:
        raise PluginError(f"{where}: the formula {inside!r} cannot be read: {type(error).__name__} {error}") from error
    if "\\" in found:
        raise PluginError(f"{where}: the formula {inside!r} has an unknown command")
    # norms grow with what is in them only where \\left asks for it; browsers would let one bar of two grow
    found = found.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')
    return f'<div class="formula">{found}</div>' if block else found


def _breakable(name: str) -> str:
    """A long name in code that may go on in the next line after a dot, a slash or an underscore."""
    return re.sub(r"([._/=:]+)(?=\w)", r"\1<wbr>", name)


def _inline(title: str, source: str) -> str:
    drawing = (ROOT / "docs" / source).read_text(encoding="utf-8")
    drawing = drawing[drawing.index("<svg") :]
    label = html.escape(html.unescape(title), quote=True)
    return f'<span class="drawing" role="img" aria-label="{label}">{drawing}</span>'
