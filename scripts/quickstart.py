"""All of it on the embedded scenes, in minutes and without a download: `make demo`.

Trains a captioner (or continues a run that was stopped), captions scenes that it has never seen,
and prints captions, references and scores.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

RUN = Path("outputs/demo")
SHOWN = 5


def main() -> None:
    """Train, evaluate on the test scenes, show."""
    argparse.ArgumentParser(
        description=__doc__,
        epilog="python scripts/quickstart.py      trains, or continues, in outputs/demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    from captioner.commands.failures import one_sentence

    with one_sentence("train", RUN):
        show()


def show() -> None:
    """Train, evaluate on the test scenes, and print both."""
    from captioner.commands.cli import compose_config
    from captioner.commands.demo import show_page
    from captioner.commands.evaluate_captions import evaluate_checkpoint
    from captioner.commands.train import train
    from captioner.progress import ConsoleHandler

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])
    overrides = ["experiment=scenes_attention", f"run_dir={RUN}", "resume=true"]
    train(compose_config("train", overrides))
    overrides = [f"checkpoint={RUN / 'best.pt'}", "split=test", "generation=beam"]
    evaluation = evaluate_checkpoint(compose_config("evaluate", overrides))

    shown = list(zip(evaluation.images, evaluation.captions, strict=True))[:SHOWN]
    for image, captions in shown:
        print(f"\n{image.path}\n  caption    {captions[0].text}")
        for reference in image.captions:
            print(f"  reference  {reference}")
    print("\nscenes never seen in training, five references, beam search:")
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "attribute_accuracy", "all_attributes"):
        print(f"  {name:20} {evaluation.scores[name]:6.2f}")
    page = evaluation.folder / "report.html"
    print(f"\nimages with their captions: {page}")
    show_page(page)
    print(f"try it on a page: python scripts/demo.py checkpoint={RUN / 'best.pt'}")


if __name__ == "__main__":
    main()
