"""Training on a score from its configuration: what drawn sentences are compared with."""

import logging
from collections.abc import Sequence

from captioner import config as schema
from captioner.data.captions import CaptionedImage
from captioner.data.tokenize import coco_tokens
from captioner.data.vocabulary import Vocabulary
from captioner.evaluation.meteor import MeteorReferences
from captioner.evaluation.sentence_scores import CountedReferences, WeightedScore
from captioner.models.base_captioner import BaseCaptioner
from captioner.training.reward import RewardObjective, RewardSettings

log = logging.getLogger(__name__)


def reward_objective(
    config: schema.RewardConfig,
    model: BaseCaptioner,
    vocabulary: Vocabulary,
    images: Sequence[CaptionedImage],
) -> RewardObjective:
    """The objective of a model over training images, whose captions are tokenised and counted here.

    DataError names the first image without a caption.
    """
    words, names = reference_words(vocabulary, images)
    references = CountedReferences(
        words,
        end=vocabulary.eos if config.eos else None,
        names=[image.name for image in images],
    )
    log.info(
        "reward: %s, %d samples an image, references of %d images",
        " + ".join(f"{w:g} {name}" for w, name in _weights(config) if w),
        config.samples,
        len(references),
    )
    reward = WeightedScore(
        references=references,
        cider=config.cider,
        bleu=config.bleu,
        meteor=config.meteor,
        meteor_references=MeteorReferences(words, names) if config.meteor else None,
        end=vocabulary.eos,
        end_counts=config.eos,
    )
    settings = RewardSettings(
        samples=config.samples,
        search=config.search,
        baseline=config.baseline,
        normalise=config.normalise,
        cross_entropy=config.cross_entropy,
        max_length=config.max_length,
    )
    return RewardObjective(
        model, reward=reward, bos=vocabulary.bos, eos=vocabulary.eos, settings=settings
    )


def reference_words(
    vocabulary: Vocabulary, images: Sequence[CaptionedImage]
) -> tuple[list[list[list[int]]], list[str]]:
    """Each image's captions as scores count their words, numbers of the vocabulary's tokens and
    above these of the words that it lacks; and all of them."""
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    captions = [
        [
            [numbers.setdefault(word, len(numbers)) for word in coco_tokens(caption)]
            for caption in image.captions
        ]
        for image in images
    ]
    return captions, [*numbers]


def _weights(config: schema.RewardConfig) -> list[tuple[float, str]]:
    return [
        (config.cider, "CIDEr-D"),
        (config.bleu, "BLEU-4"),
        (config.meteor, "METEOR-py"),
    ]
