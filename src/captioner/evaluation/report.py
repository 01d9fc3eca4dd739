"""One HTML page for a run, or for two side by side: scores, protocol, distributions, images.

The page is self-contained: thumbnails, styles, the scripts that sort, filter, search and draw
attention over images, and its maps are inside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from captioner.data.images import load_image
from captioner.data.tokenize import coco_tokens
from captioner.errors import DataError
from captioner.evaluation.attention import attended_image, attention_script, attention_style
from captioner.evaluation.compare import compare_runs
from captioner.evaluation.html import (
    data_uri,
    element,
    listing,
    resource,
    table,
    text,
    write_page,
)
from captioner.evaluation.plots import histogram
from captioner.evaluation.records import ImageRecord, RunRecord, ShownCaption
from captioner.progress import track

_THUMBNAIL = 224  # pixels, the longer edge
# What an image can be sorted by: the attribute's key -> its label, and the value of each image.
Sortable = dict[str, tuple[str, list[float]]]


def write_report(
    path: Path | str, runs: Sequence[RunRecord], *, title: str, images: int | None = None
) -> None:
    """Write the page of one run or of two on the same images, whole or not at all.

    `images` limits how many are shown. ImageError when an image cannot be read, DataError when the
    runs do not match or `path` cannot be written.
    """
    if len(runs) not in (1, 2):
        raise DataError(f"a report shows one run or two, got {len(runs)}")
    style = attention_style() + resource(__package__, "report.css")
    script = resource(__package__, "report.js") + attention_script()
    write_page(path, title, _body(runs, images), style=style, script=script)


def _body(runs: Sequence[RunRecord], limit: int | None) -> Iterator[str]:
    """The page, image by image: a report of thousands must not be in memory whole."""
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    yield from _summary(runs, shared)
    shown = list(zip(*(run.images[:limit] for run in runs), strict=True))
    sortable = _sortable(runs, shared)
    yield text("h2", f"Images ({len(shown)})") + "\n" + _legend(shown)
    yield _controls(sortable, two=len(runs) == 2)
    yield '<div id="images">\n'
    for number, images in enumerate(track(shown, len(shown), "report", units="images")):
        yield _article(number, images, runs, sortable)
    yield "</div>\n"


# -- above the images ---------------------------------------------------------------------------


def _summary(runs: Sequence[RunRecord], shared: Sequence[str]) -> Iterator[str]:
    sanity = [run.scores.get("sanity", {}) for run in runs]
    items = [
        escape(f"{run.name}: {warning}" if len(runs) > 1 else warning)
        for run, one in zip(runs, sanity, strict=True)
        for warning in one.get("warnings", [])
    ]
    if items:
        yield element("div", "<h2>Warnings</h2>", listing("ul", items), class_="warnings") + "\n"
    heads = ["", *(head for run in runs for head in (run.name, "95 %"))]
    if len(runs) == 2:
        heads += ["difference", "95 %", "p (bootstrap)", "p (random.)"]
    yield "<h2>Scores</h2>\n" + table(heads, _score_rows(runs, shared))
    for run, one in zip(runs, sanity, strict=True):
        keys = list(run.metrics)
        rows = [
            [name, *(_number(row.get(key)) for key in keys)]
            for name, row in one.get("rows", {}).items()
        ]
        if rows:
            yield text("h2", f"Baselines: {run.name}") + table(["", *keys], rows)
    yield _plots(runs, shared)
    cards = [run.scores.get("protocol", {}) for run in runs]
    rows = [
        [key.replace("_", " "), *(_plain(card.get(key)) for card in cards)]
        for key in dict.fromkeys(key for card in cards for key in card)
    ]
    if rows:
        heads = ["", *(run.name for run in runs)]
        yield "<h2>Protocol</h2>\n" + table(heads, rows, kind="number text")


def _score_rows(runs: Sequence[RunRecord], shared: Sequence[str]) -> list[list[str]]:
    rows = {name: [name] for name in shared}
    for run in runs:
        intervals = run.scores.get("intervals", {})
        for name in shared:
            bounds = "{:.2f} to {:.2f}".format(*intervals[name]) if name in intervals else ""
            rows[name] += [_number(run.metrics[name].value), bounds]
    if len(runs) == 2:
        metric = "CIDEr-D" if "CIDEr-D" in shared else shared[0]
        for name, one in compare_runs(*runs, metric=metric).differences.items():
            low, high = _signed(one.low), _signed(one.high)
            rows[name] += [_signed(one.difference), f"{low} to {high}"]
            rows[name] += [
                "< 0.001" if p < 0.001 else f"{p:.3f}"
                for p in (one.p_bootstrap, one.p_randomisation)
            ]
    return list(rows.values())


def _plots(runs: Sequence[RunRecord], shared: Sequence[str]) -> str:
    """Of every metric by image, of caption lengths, and of the best captions' log-probability."""
    best = {run.name: [image.captions[0] for image in run.images] for run in runs}
    texts = {name: [caption.text for caption in captions] for name, captions in best.items()}
    if len(runs) == 1:
        texts["references"] = [one for image in runs[0].images for one in image.references]
    lengths = {name: [len(coco_tokens(one)) for one in told] for name, told in texts.items()}
    log_probs = {
        name: [one.log_prob for one in captions if one.log_prob is not None]
        for name, captions in best.items()
    }
    plots = [
        histogram(name, {run.name: run.metrics[name].per_image for run in runs}, of="images")
        for name in shared
    ]
    plots.append(histogram("words in a caption", lengths, of="captions", whole=True))
    plots.append(histogram("log-probability, nats", log_probs, of="captions"))
    return "<h2>Distributions</h2>\n" + element("div", *plots, class_="plots") + "\n"


def _sortable(runs: Sequence[RunRecord], shared: Sequence[str]) -> Sortable:
    """Of each image every run's scores, and of two runs their differences."""
    found: Sortable = {}
    for number, run in enumerate(runs):
        for place, name in enumerate(run.metrics):
            label = name if len(runs) == 1 else f"{name}, {run.name}"
            values = [round(image.scores[name], 3) for image in run.images]
            found[f"m{number}x{place}"] = label, values
    if len(runs) == 2:
        for place, name in enumerate(runs[0].metrics):
            if name in shared:
                pairs = zip(runs[0].images, runs[1].images, strict=True)
                values = [round(b.scores[name] - a.scores[name], 3) for a, b in pairs]
                found[f"d{place}"] = f"{name}, difference", values
    return found


def _controls(sortable: Sortable, *, two: bool) -> str:
    options = "".join(text("option", label, value=key) for key, (label, _) in sortable.items())
    differing = '<label><input type="checkbox" id="differing"> only different captions</label>\n'
    template = Template(resource(__package__, "controls.html"))
    return template.substitute(options=options, differing=differing if two else "")


def _legend(shown: Sequence[tuple[ImageRecord, ...]]) -> str:
    """How attention maps are read, where there are any."""
    maps = [one.maps for images in shown for image in images for one in image.captions if one.maps]
    if not maps:
        return ""
    said = (
        "Point at a word, click it or tap it: the brighter a part of the image, the more of the "
        "model's attention lay on it when it chose that word."
    )
    if any(one.sentinel for one in maps):
        said += (
            " The line under a word is the share of its attention that lay on the sentinel, on "
            "what the model knew without the image."
        )
    return text("p", said, class_="legend") + "\n"


# -- one image ----------------------------------------------------------------------------------


def _article(
    number: int, images: Sequence[ImageRecord], runs: Sequence[RunRecord], sortable: Sortable
) -> str:
    first = images[0]
    file = None if first.file is None else Path(first.file)
    name = str(first.image_id) if file is None else file.name
    texts = [caption.text for image in images for caption in image.captions]
    attended = file is not None and any(one.maps for image in images for one in image.captions)
    shown, size = _image(file, name, attended=attended)
    captions = [
        _captions(run.name if len(runs) > 1 else "", image, size)
        for run, image in zip(runs, images, strict=True)
    ]
    references = listing("ul", map(escape, first.references))
    data: dict[str, object] = {
        "data_number": number,
        "data_same": int(len({image.captions[0].text for image in images}) == 1),
        "data_text": " ".join([name, *texts, *first.references]).lower(),
        **{f"data_{key}": values[number] for key, (_, values) in sortable.items()},
    }
    if attended:
        data["data_attended"] = ""
    heading = text("small", name) + "<br>References"
    beside = element("div", heading, references, class_="references")
    return element("article", shown, *captions, beside, **data) + "\n"


def _captions(heading: str, image: ImageRecord, size: tuple[int, int] | None) -> str:
    scores = ", ".join(f"{name} {value:.1f}" for name, value in image.scores.items())
    captions = element("ol", *(_caption(caption, size) for caption in image.captions)) + "\n"
    title = text("h3", heading) if heading else ""
    return element("div", title, captions, text("small", scores), class_="run") + "\n"


def _caption(caption: ShownCaption, size: tuple[int, int] | None) -> str:
    """The words, each shaded by its probability: the redder, the less probable; with attention
    maps where the image, of this width and height, is shown."""
    maps = caption.maps if size is not None else None
    words = [
        text(
            "span",
            word,
            class_=f"word p{min(9, int(10 * p))}",
            title=f"{p:.3f}",
            **({} if maps is None else maps.word_attributes(place, word)),
        )
        for place, (word, p) in enumerate(caption.words)
    ]
    log_prob = "" if caption.log_prob is None else f" <small>{caption.log_prob:.2f}</small>"
    around = {} if maps is None or size is None else maps.list_attributes(*size)
    return element("li", (" ".join(words) or escape(caption.text)) + log_prob, **around)


def _signed(value: float) -> str:
    """A difference; what rounds to nothing has no sign."""
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _plain(value: Any) -> str:
    """An entry of the protocol as one reads it: settings as "name value", those that are not set
    left out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _image(file: Path | None, name: str, *, attended: bool) -> tuple[str, tuple[int, int] | None]:
    """An image file as a thumbnail inside the page, and its sides in pixels."""
    if file is None:
        return "", None
    image = load_image(file)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    source, (width, height) = data_uri(image), image.size
    if attended:
        return attended_image(source, name, width=width, height=height), image.size
    return element("img", alt=name, decoding="async", src=source), image.size
