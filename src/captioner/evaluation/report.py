"""One HTML page for a run, or for two side by side: scores, protocol, distributions, pictures.

The page stands alone: pictures, styles and the script that sorts, filters and searches are inside
it, and nothing is loaded.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from captioner.data.images import load_image
from captioner.data.tokenize import coco_tokens
from captioner.errors import DataError
from captioner.evaluation.compare import compare_runs
from captioner.evaluation.plots import histogram
from captioner.evaluation.records import ImageRecord, RunRecord, ShownCaption
from captioner.files import atomic_write

_THUMBNAIL = 224  # pixels, the longer side


def write_report(
    path: Path | str, runs: Sequence[RunRecord], *, title: str, pictures: int | None = None
) -> None:
    """Write the page of one run or of two on the same images, whole or not at all.

    Every text is escaped. `pictures` limits how many are shown. ImageError when a picture cannot
    be read, DataError when the runs do not match or `path` cannot be written.
    """
    if len(runs) not in (1, 2):
        raise DataError(f"a report shows one run or two, got {len(runs)}")
    with atomic_write(path, "w") as page:
        page.write(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>\n{_resource('report.css')}</style>\n"
            f"</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        )
        page.writelines(_summary(runs))
        shown = list(zip(*(run.images[:pictures] for run in runs), strict=True))
        page.write(f"<h2>Pictures ({len(shown)})</h2>\n{_controls(runs)}")
        page.write('<div id="pictures">\n')
        # Picture by picture: a report of thousands must not stand in memory whole.
        for number, images in enumerate(shown):
            page.write(_article(number, images, runs))
        page.write(f"</div>\n<script>\n{_resource('report.js')}</script>\n</body>\n</html>\n")


def _resource(name: str) -> str:
    return resources.files("captioner.evaluation").joinpath(name).read_text(encoding="utf-8")


# -- above the pictures -------------------------------------------------------------------------


def _summary(runs: Sequence[RunRecord]) -> Iterator[str]:
    names = [run.name for run in runs]
    warnings = [
        (run.name, w) for run in runs for w in run.scores.get("sanity", {}).get("warnings", [])
    ]
    if warnings:
        items = [escape(f"{name}: {text}" if len(runs) > 1 else text) for name, text in warnings]
        yield f'<div class="warnings"><h2>Warnings</h2>{_list("ul", items)}</div>\n'
    yield _table("Scores", ["", *_score_heads(runs)], _score_rows(runs))
    for run in runs:
        rows = run.scores.get("sanity", {}).get("rows", {})
        if rows:
            keys = list(run.metrics)
            body = [[name, *(_number(row.get(key)) for key in keys)] for name, row in rows.items()]
            yield _table(f"Beside it: {run.name}", ["", *keys], body)
    yield _plots(runs)
    cards = [run.scores.get("protocol", {}) for run in runs]
    keys = list(dict.fromkeys(key for card in cards for key in card))
    body = [[key, *(_plain(card.get(key, "")) for card in cards)] for key in keys]
    yield _table("Protocol", ["", *names], body, kind="number text")


def _score_heads(runs: Sequence[RunRecord]) -> list[str]:
    heads = [head for run in runs for head in (run.name, "95 %")]
    return (
        heads if len(runs) == 1 else [*heads, "difference", "95 %", "p (bootstrap)", "p (random.)"]
    )


def _score_rows(runs: Sequence[RunRecord]) -> list[list[str]]:
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    rows = {name: [name] for name in names}
    for run in runs:
        intervals = run.scores.get("intervals", {})
        for name in names:
            low, high = intervals.get(name, (None, None))
            bounds = "" if low is None else f"{low:.2f} to {high:.2f}"
            rows[name] += [_number(run.metrics[name].value), bounds]
    if len(runs) == 2:
        metric = "CIDEr-D" if "CIDEr-D" in names else names[0]
        for name, one in compare_runs(*runs, metric=metric).differences.items():
            rows[name] += [
                f"{one.difference:+.2f}", f"{one.low:+.2f} to {one.high:+.2f}",
                _p(one.p_bootstrap), _p(one.p_randomisation),
            ]  # fmt: skip
    return list(rows.values())


def _plots(runs: Sequence[RunRecord]) -> str:
    """Of every metric by image, of caption lengths, and of the best captions' log-probability."""
    parts = [
        histogram(f"{name}, images", {run.name: run.metrics[name].per_image for run in runs})
        for name in runs[0].metrics
        if all(name in run.metrics for run in runs)
    ]
    lengths: dict[str, list[int]] = {
        run.name: [len(coco_tokens(i.captions[0].text)) for i in run.images] for run in runs
    }
    if len(runs) == 1:
        references = [caption for image in runs[0].images for caption in image.references]
        lengths["references"] = [len(coco_tokens(caption)) for caption in references]
    parts.append(histogram("words in a caption", lengths, whole=True))
    log_probs = {
        run.name: [i.captions[0].log_prob for i in run.images if i.captions[0].log_prob is not None]
        for run in runs
    }
    parts.append(histogram("log-probability of the caption, nats", log_probs))
    return f'<h2>Distributions</h2>\n<div class="plots">\n{"".join(parts)}</div>\n'


def _controls(runs: Sequence[RunRecord]) -> str:
    metrics = _keys(runs)
    options = "".join(
        f'<option value="{key}">{escape(name)}</option>' for key, name in metrics.items()
    )
    differing = ""
    if len(runs) == 2:
        differing = (
            '<label><input type="checkbox" id="differing"> only different captions</label>\n'
        )
    return (
        '<div id="controls">\n'
        '<input type="search" id="search" placeholder="search words and names">\n'
        f'<label>sort by <select id="sort"><option value="number">order</option>{options}</select>'
        '</label>\n<select id="order" aria-label="direction">'
        '<option value="up">lowest first</option>'
        '<option value="down">highest first</option></select>\n'
        f'<label>only <select id="metric">{options}</select></label>\n'
        '<label>from <input type="number" id="low" step="any"></label>\n'
        '<label>to <input type="number" id="high" step="any"></label>\n'
        f'{differing}<output id="count"></output>\n</div>\n'
    )


def _keys(runs: Sequence[RunRecord]) -> dict[str, str]:
    """The data attributes of an article that hold numbers, and what each is called."""
    keys = {}
    for number, run in enumerate(runs):
        for place, name in enumerate(run.metrics):
            keys[f"m{number}x{place}"] = name if len(runs) == 1 else f"{name}, {run.name}"
    if len(runs) == 2:
        for place, name in enumerate(runs[0].metrics):
            if name in runs[1].metrics:
                keys[f"d{place}"] = f"{name}, difference"
    return keys


# -- one picture --------------------------------------------------------------------------------


def _article(number: int, images: Sequence[ImageRecord], runs: Sequence[RunRecord]) -> str:
    first = images[0]
    name = str(first.image_id) if first.picture is None else Path(first.picture).name
    texts = [caption.text for image in images for caption in image.captions]
    search = " ".join([name, *texts, *first.references]).lower()
    same = int(len({image.captions[0].text for image in images}) == 1)
    numbers = "".join(f' data-{key}="{value}"' for key, value in _values(images, runs).items())
    picture = ""
    if first.picture is not None:
        picture = (
            f'<img alt="{escape(name)}" decoding="async" src="{_data_uri(Path(first.picture))}">\n'
        )
    sides = "".join(
        _side(run.name if len(runs) > 1 else "", image)
        for run, image in zip(runs, images, strict=True)
    )
    references = f"References{_list('ul', map(escape, first.references))}"
    return (
        f'<article data-number="{number}" data-same="{same}" data-text="{escape(search)}"'
        f'{numbers}>\n{picture}{sides}<div class="references"><small>{escape(name)}</small><br>'
        f"{references}</div>\n"
        "</article>\n"
    )


def _values(images: Sequence[ImageRecord], runs: Sequence[RunRecord]) -> dict[str, float]:
    values = {}
    for number, (image, run) in enumerate(zip(images, runs, strict=True)):
        for place, name in enumerate(run.metrics):
            values[f"m{number}x{place}"] = round(image.scores[name], 3)
    if len(runs) == 2:
        for place, name in enumerate(runs[0].metrics):
            if name in runs[1].metrics:
                values[f"d{place}"] = round(images[1].scores[name] - images[0].scores[name], 3)
    return values


def _side(heading: str, image: ImageRecord) -> str:
    title = f"<h3>{escape(heading)}</h3>\n" if heading else ""
    scores = ", ".join(f"{name} {value:.1f}" for name, value in image.scores.items())
    captions = _list("ol", map(_caption, image.captions))
    return f'<div class="run">\n{title}{captions}<small>{escape(scores)}</small>\n</div>\n'


def _caption(caption: ShownCaption) -> str:
    """The words, each shaded by its probability: the redder, the less sure."""
    log_prob = "" if caption.log_prob is None else f" <small>{caption.log_prob:.2f}</small>"
    if not caption.words:
        return escape(caption.text) + log_prob
    words = " ".join(
        f'<span class="word p{min(9, int(10 * p))}" title="{p:.3f}">{escape(word)}</span>'
        for word, p in caption.words
    )
    return words + log_prob


def _list(tag: str, items: Iterable[str]) -> str:
    return f"<{tag}>{''.join(f'<li>{item}</li>' for item in items)}</{tag}>\n"


def _table(
    heading: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "number"
) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f'<td class="{kind}">{escape(cell)}</td>' for cell in row[1:])
        + "</tr>\n"
        for row in rows
    )
    return (
        f"<h2>{escape(heading)}</h2>\n<table>\n<thead><tr>{top}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table>\n"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data_uri(path: Path) -> str:
    picture = load_image(path)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
