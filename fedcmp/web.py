"""The page of ``fedcmp serve``: a picture and what several projectors say of it. On this machine only."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedcmp.errors import ConfigError, DataError

Describe = Callable[[Sequence[Path]], list[str]]
"""Pictures to their captions."""
KEPT_SECONDS = 600
"""A picture that was dropped on the page is removed after so long, and when the page ends."""


def check_gradio() -> None:
    """Raises ConfigError where Gradio is not installed: before models are loaded."""
    if find_spec("gradio") is None:
        raise ConfigError("fedcmp serve needs Gradio: pip install 'fedcmp[web]'")


def open_page(columns: Mapping[str, Describe], port: int) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C or SIGTERM; nothing is sent anywhere else.

    Args:
        columns: what says captions, by the name that stands above.
        port: where.

    Raises:
        ConfigError: the port is taken.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the pictures are removed then, too
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read when it is imported
        import gradio

        # Gradio's own fonts are fetched from elsewhere
        theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        page, here = _build_page(columns), "127.0.0.1"
        try:
            page.launch(server_name=here, server_port=port, share=False, quiet=True, footer_links=[], theme=theme)
        except OSError as error:
            raise ConfigError(f"--port {port}: {error}") from error


def _build_page(columns: Mapping[str, Describe]) -> Any:
    import gradio

    def describe(path: str | None) -> dict[Any, str]:
        if path is None:
            return dict.fromkeys(boxes, "")
        try:
            return {box: column([Path(path)])[0] for box, column in zip(boxes, columns.values(), strict=True)}
        except DataError as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title="fedcmp", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gradio.Markdown("# fedcmp\nDrop a picture and read what each projector says of it.")
        with gradio.Row():
            # the file itself, so that it is read as training read its pictures
            picture = gradio.Image(
                type="filepath", image_mode=None, sources=["upload", "clipboard"], label="picture", height=360
            )
            with gradio.Column():
                boxes = [gradio.Textbox(label=name, interactive=False) for name in columns]
        picture.change(describe, picture, boxes)
    return page
