"""What demo.py does: checkpoints loaded, a page built and served, everything uploaded forgotten."""

import dataclasses
import os
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from captioner.build.components import pick_device
from captioner.config import DemoConfig
from captioner.demo.examples import example_images
from captioner.demo.models import load_models
from captioner.errors import ConfigError


def demo(config: DemoConfig) -> None:
    """Open the page and print where it is, until it is stopped."""
    with open_page(config) as address:
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


@contextmanager
def open_page(config: DemoConfig) -> Iterator[str]:
    """Serve the page while the context is open, at the address that it gives.

    Uploads lie in a folder of their own, which goes with the page. ConfigError when gradio is
    missing or the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="captioner-page-") as folder:
        # Gradio reads these when it is imported or a component is made.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/uploads"
        os.environ["GRADIO_EXAMPLES_CACHE"] = f"{folder}/examples"
        try:
            from captioner.demo.layout import build_demo
            from captioner.demo.server import serve
        except ModuleNotFoundError as error:
            raise ConfigError("the page needs gradio: pip install 'captioner[page]'") from error
        models = load_models(config.checkpoint, device=pick_device(config.device))
        examples = example_images(models, Path(folder) / "scenes")
        page = build_demo(
            models,
            defaults=dataclasses.asdict(config.generation),
            configure=partial(dataclasses.replace, config.generation),
            examples=examples,
        )
        with serve(page, host=config.host, port=config.port, max_mb=config.max_mb) as address:
            yield address


def show_page(path: Path) -> None:
    """Open a page in the browser where someone sits before a screen of this machine."""
    if sys.platform == "darwin":
        screen = "SSH_CONNECTION" not in os.environ
    else:
        screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if screen and sys.stdout.isatty():
        webbrowser.open(path.absolute().as_uri())
