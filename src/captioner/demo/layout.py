"""The demo's layout: a tab of captions, a tab of text; what they do is in models.py."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from captioner.demo.models import CaptionModel, Models, TextModel, facts, read_upload
from captioner.demo.requests import in_a_sentence
from captioner.demo.settings import (
    CAPTION_SETTINGS,
    LONGEST_PROMPT,
    METHODS,
    TEXT_DEFAULTS,
    TEXT_SETTINGS,
    Setting,
    caption_defaults,
    checked,
    checked_prompt,
    generation_values,
)
from captioner.demo.shading import NOTHING_YET, captions_html, heading_html, problem_html
from captioner.errors import CaptionerError
from captioner.evaluation.html import element

log = logging.getLogger(__name__)
FRAME = 0.05  # seconds between two views of a growing text; more views would queue up
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
# Everything that runs a model waits in one queue.
_MODEL_QUEUE = {**_PRIVATE, "concurrency_id": "model", "concurrency_limit": 1}


class Page(gr.Blocks):
    """A page of Gradio whose visitors are told what is wrong; Gradio would print a traceback and
    tell them nothing."""

    async def process_api(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Answer an event of the page; gr.Error for any that cannot be."""
        try:
            answer: dict[str, Any] = await super().process_api(*arguments, **named)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:  # of many kinds
            said = in_a_sentence(error)
            log.warning("%s", said)
            raise gr.Error(said, print_exception=False) from error
        return answer


def build_demo(
    models: Models,
    *,
    defaults: Mapping[str, Any],
    configure: Callable[..., Any],
    examples: Sequence[Path],
) -> gr.Blocks:
    """The demo of these models.

    `defaults` are the configured values of generation; `configure` makes of changed values what
    `CaptionModel.captions` takes, or raises ConfigError.
    """
    with Page(title="captioner", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.HTML("<h1>captioner</h1>", elem_id="title")
        if models.captioners:
            with gr.Tab("Captions"):
                _captions_tab(models.captioners, defaults, configure, examples)
        if models.writer is not None:
            with gr.Tab("Text"):
                _text_tab(models.writer)
    return demo


def _captions_tab(
    captioners: Sequence[CaptionModel],
    defaults: Mapping[str, Any],
    configure: Callable[..., Any],
    examples: Sequence[Path],
) -> None:
    method, values = caption_defaults(defaults)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320, elem_classes="asked"):
            photo = gr.Image(
                sources=["upload", "webcam", "clipboard"],
                type="filepath",
                image_mode=None,
                label="Image",
                buttons=[],
                height=300,
                elem_id="photo",
            )
            _take_uploads_only(photo)
            gr.Examples([[str(path)] for path in examples], photo, label="Examples")
            chosen = gr.Radio(list(METHODS), value=method, label="Method", elem_id="method")
            sliders = _sliders(CAPTION_SETTINGS, values, method)
        with gr.Column(scale=3 * len(captioners), min_width=320, elem_classes="answered"):
            shown = gr.HTML(NOTHING_YET, elem_id="captions")

    def caption(upload: dict[str, Any] | None, method: str, *values: float) -> str:
        if upload is None or upload["path"] is None:
            return NOTHING_YET
        try:
            generation = configure(**generation_values(method, _by_key(CAPTION_SETTINGS, values)))
            path = Path(upload["path"])
            image = read_upload(path, upload.get("orig_name") or path.name)
            parts = (_spoken(model, image, generation) for model in captioners)
            return element("div", *parts, class_="side-by-side")
        except CaptionerError as error:
            return problem_html(error)

    # Not preprocessed: Gradio would open the upload before read_upload does.
    gr.on(
        [photo.change, chosen.change, *(slider.change for slider in sliders)],
        caption,
        [photo, chosen, *sliders],
        shown,
        preprocess=False,
        trigger_mode="always_last",
        show_progress="minimal",
        **_MODEL_QUEUE,
    )

    def visible(method: str) -> list[Any]:
        return [gr.update(visible=setting.used_by(method)) for setting in CAPTION_SETTINGS]

    chosen.change(visible, chosen, sliders, queue=False, **_PRIVATE)


def _spoken(model: CaptionModel, image: Image.Image, generation: Any) -> str:
    captions, maps = model.captions_and_maps(image, generation)
    return captions_html(model.name, facts(model), captions, image=image, maps=maps)


def _text_tab(writer: TextModel) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320, elem_classes="asked"):
            prompt = gr.Textbox(
                label="Prompt", lines=3, max_length=LONGEST_PROMPT, elem_id="prompt"
            )
            with gr.Row():
                write = gr.Button("Write", variant="primary", min_width=80, elem_id="write")
                stop_button = gr.Button("Stop", min_width=80, elem_id="stop")
            sliders = _sliders(TEXT_SETTINGS, TEXT_DEFAULTS)
        with gr.Column(scale=3, min_width=320, elem_classes="answered"):
            gr.HTML(heading_html(writer.name, facts(writer)))
            lines: dict[str, Any] = {"lines": 22, "max_lines": 22, "autoscroll": True}
            text = gr.Textbox(
                label="Text", interactive=False, buttons=["copy"], elem_id="text", **lines
            )
            problem = gr.HTML(elem_id="text-problem")

    stopped: dict[str | None, threading.Event] = {}  # by session

    def run(request: gr.Request, prompt: str, *values: float) -> Iterator[tuple[Any, str]]:
        stop = stopped[request.session_hash] = threading.Event()
        try:
            settings = checked(TEXT_SETTINGS, _by_key(TEXT_SETTINGS, values))
            writes = writer.writes(checked_prompt(prompt), **settings)
            with contextlib.closing(writes) as writing:
                for grown in writing:
                    yield grown, ""
                    if stop.is_set():
                        return
                    time.sleep(FRAME)
        except CaptionerError as error:
            yield gr.skip(), problem_html(error)
        finally:
            stopped.pop(request.session_hash, None)

    # Gradio's cancel would not end the generator, and the next visitor would wait for it.
    def end(request: gr.Request) -> None:
        if request.session_hash in stopped:
            stopped[request.session_hash].set()

    gr.on(
        [write.click, prompt.submit],
        run,
        [prompt, *sliders],
        [text, problem],
        preprocess=False,  # the settings are checked here
        show_progress="hidden",
        trigger_mode="once",
        **_MODEL_QUEUE,
    )
    stop_button.click(end, queue=False, **_PRIVATE)


def _sliders(
    settings: Sequence[Setting], values: Mapping[str, float], method: str | None = None
) -> list[gr.Slider]:
    return [
        gr.Slider(
            setting.low,
            setting.high,
            value=values[setting.key],
            step=setting.step,
            label=setting.label,
            visible=method is None or setting.used_by(method),
            elem_id=setting.key if method else f"text-{setting.key}",
        )
        for setting in settings
    ]


def _by_key(settings: Sequence[Setting], values: Sequence[float]) -> dict[str, float]:
    return {setting.key: value for setting, value in zip(settings, values, strict=True)}


def _take_uploads_only(photo: gr.Image) -> None:
    """Refuse an image's address in place of an image: Gradio would fetch it."""
    moved = photo.async_move_resource_to_block_cache

    async def move(path: str | Path | None) -> str | None:
        if path is not None and not Path(path).is_file():
            raise gr.Error("this demo takes uploaded images only", print_exception=False)
        return await moved(path)

    photo.async_move_resource_to_block_cache = move  # type: ignore[method-assign, assignment]
