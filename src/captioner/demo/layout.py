"""How the page looks: a tab of captions, a tab of text; what they do is in models.py."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from captioner.config import GenerationConfig
from captioner.demo.models import CaptionerModel, Models, WritingModel, read_upload
from captioner.demo.settings import (
    CAPTION_SETTINGS,
    DECODERS,
    TEXT_DEFAULTS,
    TEXT_SETTINGS,
    Setting,
    caption_defaults,
    checked,
    generation_config,
)
from captioner.demo.shading import NOTHING_YET, captions_html, heading_html, problem_html
from captioner.errors import CaptionerError

FRAME = 0.05  # seconds between what a visitor sees of a growing text; more would queue up

# One visitor's work at a time: everything that runs a model stands in this queue.
_ALONE: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
}


def build_page(
    models: Models, *, generation: GenerationConfig, examples: Sequence[Path]
) -> gr.Blocks:
    """The page for these models, beginning with the decoder that `generation` describes."""
    with gr.Blocks(title="captioner", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML("<h1>captioner</h1>", elem_id="title")
        if models.captioners:
            with gr.Tab("Captions"):
                _captions_tab(models.captioners, generation, examples)
        if models.writer is not None:
            with gr.Tab("Text"):
                _text_tab(models.writer)
    return page


def _captions_tab(
    captioners: Sequence[CaptionerModel], generation: GenerationConfig, examples: Sequence[Path]
) -> None:
    decoder, values = caption_defaults(generation)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            photo = gr.Image(
                sources=["upload", "webcam", "clipboard"], type="filepath", image_mode=None,
                label="Picture", buttons=[], height=300, elem_id="photo",
            )  # fmt: skip
            _take_uploads_only(photo)
            gr.Examples([[str(path)] for path in examples], photo, label="Examples")
            chosen = gr.Radio(list(DECODERS), value=decoder, label="Decoder", elem_id="decoder")
            sliders = _sliders(CAPTION_SETTINGS, values, decoder)
        with gr.Column(scale=3 * len(captioners), min_width=320):
            shown = gr.HTML(NOTHING_YET, elem_id="captions")

    def caption(upload: dict[str, Any] | None, decoder: str, *values: float) -> str:
        if upload is None:
            return NOTHING_YET
        try:
            settings = generation_config(generation, decoder, _by_key(CAPTION_SETTINGS, values))
            path = Path(upload["path"])
            picture = read_upload(path, upload.get("orig_name") or path.name)
            parts = [
                captions_html(model.name, model.facts, model.captions(picture, settings))
                for model in captioners
            ]
            return f'<div class="side-by-side">{"".join(parts)}</div>'
        except CaptionerError as error:
            return problem_html(error)

    # Not preprocessed: Gradio would open the upload in its own way, before ours.
    gr.on(
        [photo.change, chosen.change, *(slider.change for slider in sliders)], caption,
        [photo, chosen, *sliders], shown, preprocess=False, trigger_mode="always_last",
        show_progress="minimal", **_ALONE,
    )  # fmt: skip
    chosen.change(_visible, chosen, sliders, queue=False, api_visibility="private")


def _text_tab(writer: WritingModel) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(label="Prompt", lines=3, max_length=2000, elem_id="prompt")
            with gr.Row():
                write = gr.Button("Write", variant="primary", min_width=80, elem_id="write")
                stop_button = gr.Button("Stop", min_width=80, elem_id="stop")
            sliders = _sliders(TEXT_SETTINGS, TEXT_DEFAULTS)
        with gr.Column(scale=3, min_width=320):
            gr.HTML(heading_html(writer.name, writer.facts))
            text = gr.Textbox(
                label="Text", lines=22, max_lines=22, autoscroll=True, interactive=False,
                buttons=["copy"], elem_id="text",
            )  # fmt: skip
            problem = gr.HTML(elem_id="text-problem")

    stopped: dict[str | None, threading.Event] = {}  # of each visitor

    def run(request: gr.Request, prompt: str, *values: float) -> Iterator[tuple[Any, str]]:
        stop = stopped[request.session_hash] = threading.Event()
        try:
            settings = checked(TEXT_SETTINGS, _by_key(TEXT_SETTINGS, values))
            with contextlib.closing(writer.writes(prompt, **settings)) as writing:
                for grown in writing:
                    yield grown, ""
                    if stop.is_set():
                        return
                    time.sleep(FRAME)
        except CaptionerError as error:
            yield gr.skip(), problem_html(error)
        finally:
            stopped.pop(request.session_hash, None)

    # Gradio's own way to cancel leaves the writing to end by itself, the next visitor waiting.
    def end(request: gr.Request) -> None:
        if request.session_hash in stopped:
            stopped[request.session_hash].set()

    gr.on(
        [write.click, prompt.submit], run, [prompt, *sliders], [text, problem],
        show_progress="hidden", trigger_mode="once", **_ALONE,
    )  # fmt: skip
    stop_button.click(end, queue=False, api_visibility="private")


def _sliders(
    settings: Sequence[Setting], values: Mapping[str, float], decoder: str | None = None
) -> list[gr.Slider]:
    return [
        gr.Slider(
            setting.low, setting.high, value=values[setting.key], step=setting.step,
            label=setting.label, visible=decoder is None or setting.belongs_to(decoder),
            elem_id=setting.key if decoder else f"text-{setting.key}",
        )
        for setting in settings
    ]  # fmt: skip


def _visible(decoder: str) -> list[Any]:
    return [gr.update(visible=setting.belongs_to(decoder)) for setting in CAPTION_SETTINGS]


def _by_key(settings: Sequence[Setting], values: Sequence[float]) -> dict[str, float]:
    return {setting.key: value for setting, value in zip(settings, values, strict=True)}


def _take_uploads_only(photo: gr.Image) -> None:
    """Take no picture's address in place of a picture: Gradio would fetch it."""
    moved = photo.async_move_resource_to_block_cache

    async def move(path: str | Path | None) -> str | None:
        if path is not None and not Path(path).is_file():
            raise gr.Error("this page takes uploaded pictures only", print_exception=False)
        return await moved(path)

    photo.async_move_resource_to_block_cache = move  # type: ignore[method-assign, assignment]
