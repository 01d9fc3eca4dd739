"""Models from their configuration: each kind of the group `model`."""

from collections.abc import Callable
from typing import Any

from torch import nn

from captioner import config as schema
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.captioner import Captioner
from captioner.models.encoder import Encoder
from captioner.models.language_model import DropoutRates, LanguageModel, initialise
from captioner.models.layered_attention import AttentionSettings, LayeredAttention


def build_language_model(
    config: schema.ModelConfig, *, vocab_size: int, rnn: schema.RnnConfig
) -> LanguageModel:
    """A language model with nothing in front, initialised as the configuration says."""
    model = _language_model(config, vocab_size, rnn)
    _initialise(model, config)
    return model


def build_captioner(
    config: schema.ModelConfig,
    *,
    vocab_size: int,
    feature_dim: int,
    regions: int | None = None,
    encoder: Encoder | None = None,
    rnn: schema.RnnConfig | None = None,
) -> BaseCaptioner:
    """The captioner of the configuration's kind, its own layers initialised as configured; `rnn`
    None is an LSTM. A model that attends takes images of so many `regions`, None of any number."""
    norm = config.feature_norm
    if norm == "auto":
        norm = "none" if encoder is not None else "standardise"
    model = KINDS[config.kind](
        config,
        vocab_size,
        rnn or schema.RnnConfig(),
        feature_dim=feature_dim,
        feature_norm=norm,
        feature_dropout=config.feature_dropout,
        encoder=encoder,
        **({"regions": regions} if config.attends else {}),
    )
    for name, part in model.named_children():
        if name != "encoder":
            _initialise(part, config)
    return model


def _show_and_tell(
    config: schema.ModelConfig, vocab_size: int, rnn: schema.RnnConfig, **image: Any
) -> Captioner:
    return Captioner(language_model=_language_model(config, vocab_size, rnn), **image)


def _layered_attention(
    config: schema.LayeredAttentionConfig, vocab_size: int, rnn: schema.RnnConfig, **image: Any
) -> LayeredAttention:
    return LayeredAttention(
        language_model=_language_model(config, vocab_size, rnn),
        attention=AttentionSettings(
            dim=config.attention_dim,
            heads=config.heads,
            region_dropout=config.region_dropout,
            weight_dropout=config.attention_dropout,
        ),
        join=config.join,
        **image,
    )


# By model.kind: a function of the configuration, of V and of the recurrent layers' configuration.
KINDS: dict[str, Callable[..., BaseCaptioner]] = {
    "show_and_tell": _show_and_tell,
    "layered_attention": _layered_attention,
}


def _language_model(
    config: schema.ModelConfig, vocab_size: int, rnn: schema.RnnConfig
) -> LanguageModel:
    return LanguageModel(
        vocab_size=vocab_size,
        embedding_dim=config.embedding_dim,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        dropout=DropoutRates(
            input=config.input_dropout,
            output=config.output_dropout,
            layer=config.layer_dropout,
            variational=rnn.variational_dropout,
        ),
        tie_embeddings=config.tie_embeddings,
        backend=config.backend,
        kind=rnn.kind,
    )


def _initialise(part: nn.Module, config: schema.ModelConfig) -> None:
    initialise(part, scheme=config.init, scale=config.init_scale, forget_bias=config.forget_bias)
