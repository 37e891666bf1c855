"""The page of ``fedcmp serve``: a picture and what several projectors say of it. On this machine only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcmp.errors import ConfigError, DataError

Describe = Callable[[Sequence[Path]], list[str]]
"""Pictures to their captions."""


def open_page(columns: Mapping[str, Describe], port: int) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C; nothing is sent anywhere else.

    Args:
        columns: what says captions, by the name that stands above.
        port: where.

    Raises:
        ConfigError: Gradio is not installed, or the port is taken.
    """
    page = build_page(columns)
    try:
        page.launch(server_name="127.0.0.1", server_port=port, share=False, quiet=True, footer_links=[], **_looks())
    except OSError as error:
        raise ConfigError(f"--port {port}: {error}") from error


def build_page(columns: Mapping[str, Describe]) -> Any:
    """The page as Gradio's ``Blocks``; arguments and errors as ``open_page``."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise ConfigError("fedcmp serve needs Gradio: pip install 'fedcmp[web]'") from error

    def describe(path: str | None) -> list[str]:
        if path is None:
            return [""] * len(columns)
        try:
            return [column([Path(path)])[0] for column in columns.values()]
        except DataError as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title="fedcmp", analytics_enabled=False) as page:
        gradio.Markdown("# fedcmp\nDrop a picture and read what each projector says of it.")
        with gradio.Row():
            # the file as it is, so that it is read as training read its pictures
            picture = gradio.Image(
                type="filepath", image_mode=None, sources=["upload", "clipboard"], label="picture", height=360
            )
            with gradio.Column():
                boxes = [gradio.Textbox(label=name, interactive=False) for name in columns]
        picture.change(describe, picture, boxes)
    return page


def _looks() -> dict[str, Any]:
    """Fonts of the system: Gradio's own are fetched from elsewhere."""
    import gradio

    return {"theme": gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])}
