"""Captions as HTML: a bar over every word, as high as the word is probable."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from captioner.inference.captions import Caption

NOTHING_YET = '<p class="hint">Drop a picture, take one, or pick an example.</p>'


def captions_html(name: str, facts: str, captions: Sequence[Caption]) -> str:
    """One model's captions, best first, under its name."""
    items = "".join(map(_caption, captions))
    return f'<section class="captions">{heading_html(name, facts)}<ol>{items}</ol></section>'


def heading_html(name: str, facts: str) -> str:
    """A model's name and what is known of it."""
    return f'<header class="model"><h3>{escape(name)}</h3><p>{escape(facts)}</p></header>'


def problem_html(error: Exception) -> str:
    """The one sentence that says what is wrong."""
    return f'<p class="problem" role="alert">{escape(str(error))}</p>'


def _caption(caption: Caption) -> str:
    words = "".join(_word(word, p) for word, p in caption.words)
    if not caption.finished:
        words += '<span class="word cut" title="closed at the greatest length">…</span>'
    log_prob = f"{caption.log_prob:.2f}".replace("-", "\N{MINUS SIGN}")
    return (
        f'<li><div class="sentence" data-caption="{escape(caption.text)}">{words}</div>'
        f'<div class="figures">log-probability {log_prob}</div></li>'
    )


def _word(word: str, p: float) -> str:
    return (
        f'<span class="word" style="--p:{p:.3f}" title="{p:.1%}"><i></i>'
        f"<b>{escape(word)}</b><small>{_percent(p)}</small></span>"
    )


def _percent(p: float) -> str:
    return "&lt;1" if p < 0.005 else f"{100 * p:.0f}"
