"""The model card: a README.md with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from captioner import __version__

# Shown of an evaluation, and what the Hub calls it.
METRICS = {
    "BLEU-1": "bleu", "BLEU-4": "bleu", "METEOR-py": "meteor", "ROUGE-L": "rouge",
    "CIDEr-D": "cider", "attribute_accuracy": "accuracy", "loss": "loss",
    "perplexity": "perplexity", "bits_per_character": "bits_per_character",
    "bits_per_byte": "bits_per_byte",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says. evaluations: scores.json files' content; encoder: one sentence on it."""

    name: str
    license: str
    config: Mapping[str, Any]
    parameters: int
    vocabulary: int
    encoder: str | None
    scores: Mapping[str, float]
    evaluations: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> bool:
        """Whether the model is one of text alone."""
        return self.encoder is None

    @property
    def data(self) -> str:
        """The data in a word or two."""
        tree = self.config["data"]
        source = tree.get("source")
        return str(source if source not in (None, "path") else tree.get("path") or tree["kind"])


def model_card(facts: CardFacts) -> str:
    """The whole README.md."""
    sections = (_summary, _use, _training, _scores, _limits, _versions)
    body = "\n\n".join("\n".join(section(facts)) for section in sections)
    return f"{_front_matter(facts)}\n{body}\n"


def _front_matter(facts: CardFacts) -> str:
    """YAML between two rules; each value is JSON, which is YAML."""
    kind = ["text-generation", "language-model"] if facts.text else ["image-captioning"]
    fields: dict[str, Any] = {
        "license": facts.license,
        "library_name": "captioner",
        "pipeline_tag": "text-generation" if facts.text else "image-to-text",
        "tags": [*kind, facts.config.get("rnn", {}).get("kind", "lstm"), "pytorch"],
    }
    results = [one for scores in facts.evaluations for one in _results(facts, scores)]
    if results:
        fields["model-index"] = [{"name": facts.name, "results": results}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---", ""])


def _results(facts: CardFacts, scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An evaluation as the Hub's model index has it."""
    protocol = scores.get("protocol", {})
    metrics = [
        {"type": kind, "name": name, "value": round(scores[name], 4)}
        for name, kind in METRICS.items()
        if isinstance(scores.get(name), float)
    ]
    if metrics:
        yield {
            "task": {"type": "text-generation" if facts.text else "image-to-text"},
            "dataset": {
                "name": str(protocol.get("data", facts.data)),
                "type": facts.data,
                "split": str(protocol.get("split", "dev")),
            },
            "metrics": metrics,
        }


def _summary(facts: CardFacts) -> list[str]:
    what = "writes text" if facts.text else "says in a sentence what a picture shows"
    kind = facts.config.get("rnn", {}).get("kind", "lstm")
    lines = [
        f"# {facts.name}",
        "",
        f"A recurrent language model ({kind}) that {what}, trained on {facts.data} with captioner.",
        f"{facts.parameters:,} weights in model.safetensors, {facts.vocabulary:,} tokens in the "
        "vocabulary.",
    ]
    return lines if facts.encoder is None else [*lines, facts.encoder]


def _use(facts: CardFacts) -> list[str]:
    call = 'generate("Once", length=200)' if facts.text else 'caption("photo.jpg")'
    return [
        "## How to load it",
        "",
        "```python",
        "import captioner",
        f'model = captioner.load("{facts.name}")   # this folder; on a GPU where there is one',
        f"print(model.{call})",
        "```",
        "",
        "Nothing here is a pickle: weights are safetensors, the rest is text. The vocabulary lists "
        "the words; `<pad>`, `<bos>`, `<eos>` and `<unk>` come before them.",
    ]


def _training(facts: CardFacts) -> list[str]:
    """The settings a reader asks for first; config.json has every one."""
    config = facts.config
    decoder, optimizer, trainer = config["model"], config["optimizer"], config["trainer"]
    rows = {
        "data": facts.data,
        "embedding, hidden size, layers": ", ".join(
            str(decoder[key]) for key in ("embedding_dim", "hidden_size", "num_layers")
        ),
        "dropout: input, output": f"{decoder['input_dropout']}, {decoder['output_dropout']}",
        "optimiser": f"{optimizer['name']}, learning rate {optimizer['lr']}, "
        f"{optimizer['schedule']}",
        "epochs, batch size": f"{trainer['epochs']}, {trainer['batch_size']}",
        "checkpoint of the best": trainer["best_metric"],
        "seed": config["seed"],
    }
    table = [f"| {key} | {value} |" for key, value in rows.items()]
    return ["## Training", "", "| | |", "|---|---|", *table, "", "Every setting: config.json."]


def _scores(facts: CardFacts) -> list[str]:
    lines = ["## Scores", ""]
    if facts.scores:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in facts.scores.items())
        lines += [f"While training, on the dev split that chose this checkpoint: {figures}.", ""]
    for scores in facts.evaluations:
        lines += [*_evaluation(scores), ""]
    return lines[:-1] if facts.scores or facts.evaluations else [*lines, "None is known."]


def _evaluation(scores: Mapping[str, Any]) -> Iterator[str]:
    """An evaluation's figures with their intervals, after the protocol that they depend on."""
    protocol = scores.get("protocol", {})
    generation = protocol.get("generation", {})
    said = {
        **{key: protocol[key] for key in _SHOWN if key in protocol},
        **{
            key: generation[key]
            for key in _DECODE.get(generation.get("method"), ())
            if key in generation
        },
    }
    yield "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in said.items()) + "."
    yield from ("", "| metric | value | 95 % interval |", "|---|---|---|")
    intervals = scores.get("intervals", {})
    for name in scores:
        if isinstance(scores[name], float) and (name in METRICS or name.startswith("BLEU")):
            low_high = intervals.get(name)
            bounds = f"{low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else ""
            yield f"| {name} | {scores[name]:.2f} | {bounds} |"


_SHOWN = (
    "data",
    "split",
    "images",
    "protocol",
    "tokeniser",
    "brevity_penalty",
    "bleu",
    "averaged over",
)
_DECODE = {
    "greedy": ("method", "max_length"),
    "beam": ("method", "beam_size", "length_penalty", "max_length"),
    "sample": ("method", "temperature", "top_k", "top_p"),
}


def _limits(facts: CardFacts) -> list[str]:
    if facts.text:
        said = (
            "For research and teaching. It repeats the manner of its training text, states nothing "
            "that can be relied on, and may reproduce passages of that text."
        )
    else:
        said = (
            "For research and teaching. It knows only what its training captions name, says that "
            "of every picture, and is often wrong in a fluent sentence. What it says of people "
            "(sex, age, clothes, what they do) is guessed from how captions were written: do not "
            "decide anything about anybody by it, and do not rely on it where an error could do "
            "harm."
        )
    return [
        "## Intended use and limits",
        "",
        said,
        "",
        f"The weights' licence is given as `{facts.license}`; the data's own terms hold beside it.",
    ]


def _versions(facts: CardFacts) -> list[str]:
    return [
        "## Versions",
        "",
        f"Exported by captioner {__version__} with PyTorch {torch.__version__}.",
    ]
