"""The page of ``fedcmp serve``: a picture and the captions of several projectors. On this machine only."""

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
"""How long a picture that was dropped on the page is kept at most."""


def check_gradio() -> None:
    """Raises ConfigError where Gradio is not installed: before models are loaded."""
    if find_spec("gradio") is None:
        raise ConfigError("fedcmp serve needs Gradio: pip install 'fedcmp[web]'")


def open_page(columns: Mapping[str, Describe], port: int) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C or SIGTERM; nothing is sent anywhere else.

    Args:
        columns: the function that captions, by the name of its column.
        port: where.

    Raises:
        ConfigError: the port is taken.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the pictures are removed
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read when it is imported
        import gradio

        # Gradio would fetch its own fonts
        theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        options = {"share": False, "quiet": True, "footer_links": [], "theme": theme}
        try:
            _build_page(columns).launch(server_name="127.0.0.1", server_port=port, **options)
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
        gradio.Markdown("# fedcmp\nDrop a picture and read the caption of each projector.")
        with gradio.Row():
            # the file itself, which is read as training reads its pictures
            picture = gradio.Image(
                type="filepath", image_mode=None, sources=["upload", "clipboard"], label="picture", height=360
            )
            with gradio.Column():
                boxes = [gradio.Textbox(label=name, interactive=False) for name in columns]
        picture.change(describe, picture, boxes)
    return page
