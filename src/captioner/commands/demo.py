"""What demo.py does: checkpoints loaded, a page built and served, everything uploaded forgotten."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from captioner.build.components import pick_device
from captioner.config import DemoConfig
from captioner.demo.examples import example_images
from captioner.demo.models import load_models
from captioner.errors import ConfigError


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
