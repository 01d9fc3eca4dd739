"""The model card: a README.md with the front matter that the Hugging Face Hub reads."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

import torch

from captioner.version import __version__

# Shown of an evaluation, and what the Hub calls it.
METRICS = {
    "BLEU-1": "bleu", "BLEU-4": "bleu", "METEOR-py": "meteor", "ROUGE-L": "rouge",
    "CIDEr-D": "cider", "attribute_accuracy": "accuracy", "loss": "loss",
    "perplexity": "perplexity", "bits_per_character": "bits_per_character",
    "bits_per_byte": "bits_per_byte",
}  # fmt: skip
# Of an evaluation's protocol, and of its generation by method.
_PROTOCOL = "data split images protocol tokeniser brevity_penalty bleu".split()  # noqa: SIM905
_GENERATION = {
    "greedy": ("method", "max_length"),
    "beam": ("method", "beam_size", "length_penalty", "max_length"),
    "sample": ("method", "temperature", "top_k", "top_p", "typical_p"),
}


# What data sets say of themselves.
TERMS = {
    "flickr8k": " Flickr8k's photographs belong to their authors and are for research use only; "
    "none is in these files.",
}


@dataclass(frozen=True)
class Task:
    """What a card says of all models of a task."""

    pipeline: str
    tags: tuple[str, ...]
    does: str
    call: str
    limits: str


TASKS = {
    "captions": Task(
        "image-to-text",
        ("image-captioning",),
        "says in a sentence what an image shows",
        'caption("photo.jpg")',
        "For research and teaching. It knows only what its training captions name, says that of "
        "every image, and is often wrong in a fluent sentence. What it says of people (sex, age, "
        "clothes, what they do) is guessed from how captions were written: do not decide anything "
        "about anybody by it, and do not rely on it where an error could do harm.",
    ),
    "text": Task(
        "text-generation",
        ("text-generation", "language-model"),
        "writes text",
        'generate("Once", length=200)',
        "For research and teaching. It repeats the manner of its training text, states nothing "
        "that can be relied on, and may reproduce passages of that text.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says. task: of TASKS; evaluations: scores.json files' content; encoder: one
    sentence on it; commands: it was trained with these, one after another."""

    task: str
    name: str
    license: str
    config: Mapping[str, Any]
    parameters: int
    vocabulary: int
    encoder: str | None
    scores: Mapping[str, float]
    evaluations: Sequence[Mapping[str, Any]] = field(default_factory=list)
    commands: Sequence[str] = ()

    @property
    def data(self) -> str:
        """The data in a word or two."""
        tree = self.config["data"]
        source = tree.get("source")
        return str(source if source not in (None, "path") else tree.get("path") or tree["kind"])

    @property
    def kind(self) -> str:
        """The recurrent network."""
        return str(self.config.get("rnn", {}).get("kind", "lstm"))


def model_card(facts: CardFacts) -> str:
    """The whole README.md."""
    task = TASKS[facts.task]
    parts = ["\n".join(_evaluation(scores)) for scores in facts.evaluations]
    if facts.scores:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in facts.scores.items())
        parts.insert(0, f"While training, on the dev split that chose this checkpoint: {figures}.")
    template = resources.files(__package__).joinpath("card.md").read_text(encoding="utf-8")
    return Template(template).substitute(
        {**vars(task), **vars(facts)},
        front=_front_matter(facts),
        kind=facts.kind,
        data=facts.data,
        parameters=f"{facts.parameters:,}",
        vocabulary=f"{facts.vocabulary:,}",
        encoder="" if facts.encoder is None else f"\n{facts.encoder}",
        training=_training(facts.config, facts.data),
        commands=_commands(facts.commands),
        terms=TERMS.get(facts.config["data"]["kind"], ""),
        scores="\n\n".join(parts) or "None is known.",
        version=__version__,
        torch=torch.__version__,
    )


def _front_matter(facts: CardFacts) -> str:
    """YAML, each value as JSON, which is YAML."""
    task = TASKS[facts.task]
    fields: dict[str, Any] = {
        "license": facts.license,
        "library_name": "captioner",
        "pipeline_tag": task.pipeline,
        "tags": [*task.tags, facts.kind, "pytorch"],
    }
    results = [_result(facts, scores) for scores in facts.evaluations]
    if results := [one for one in results if one["metrics"]]:
        fields["model-index"] = [{"name": facts.name, "results": results}]
    return "\n".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in fields.items())


def _result(facts: CardFacts, scores: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation as the Hub's model index has it."""
    protocol = scores.get("protocol", {})
    data, split = str(protocol.get("data", facts.data)), str(protocol.get("split", "dev"))
    metrics = [
        {"type": kind, "name": name, "value": round(scores[name], 4)}
        for name, kind in METRICS.items()
        if isinstance(scores.get(name), float)
    ]
    return {
        "task": {"type": TASKS[facts.task].pipeline},
        "dataset": {"name": data, "type": facts.data, "split": split},
        "metrics": metrics,
    }


def _training(config: Mapping[str, Any], data: str) -> str:
    """The settings a reader asks for first; config.json has every one."""
    model, optimizer, trainer = config["model"], config["optimizer"], config["trainer"]
    sizes = (str(model[key]) for key in ("embedding_dim", "hidden_size", "num_layers"))
    lr = f"learning rate {optimizer['lr']}"
    rows = {
        "data": data,
        "embedding, hidden size, layers": ", ".join(sizes),
        "dropout: input, output": f"{model['input_dropout']}, {model['output_dropout']}",
        "optimiser": f"{optimizer['name']}, {lr}, {optimizer['schedule']}",
        "epochs, batch size": f"{trainer['epochs']}, {trainer['batch_size']}",
        "checkpoint of the best": trainer["best_metric"],
        "seed": config["seed"],
    }
    return "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _commands(commands: Sequence[str]) -> str:
    """How it was trained, to be typed."""
    return "\n".join(["```", *commands, "```", ""]) if commands else ""


def _evaluation(scores: Mapping[str, Any]) -> Iterator[str]:
    """An evaluation's figures with their intervals, after the protocol that they depend on."""
    protocol = scores.get("protocol", {})
    generation = protocol.get("generation", {})
    of_method = _GENERATION.get(generation.get("method"), ())
    said = {key: protocol[key] for key in (*_PROTOCOL, "averaged over") if key in protocol}
    said |= {key: generation[key] for key in of_method if key in generation}
    if generation.get("rerank", "none") != "none":
        said["reranked by"] = generation["rerank"]
        counted = {None: "none", "train": "the training captions"}
        table = generation.get("document_frequencies")
        said["document frequencies"] = counted.get(table, "a table of its own")
    yield "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in said.items()) + "."
    yield from ("", "| metric | value | 95 % interval |", "|---|---|---|")
    for name, value in scores.items():
        if isinstance(value, float) and (name in METRICS or name.startswith("BLEU")):
            bounds = scores.get("intervals", {}).get(name)
            interval = "{:.2f} to {:.2f}".format(*bounds) if bounds else ""
            yield f"| {name} | {value:.2f} | {interval} |"
