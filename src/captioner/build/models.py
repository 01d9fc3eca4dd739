"""Models from their configuration: each kind of the group `model`."""

from collections.abc import Callable
from typing import Any

from torch import nn

from captioner import config as schema
from captioner.errors import ConfigError
from captioner.models.activation_regularisation import ActivationRegularisation
from captioner.models.adaptive_attention import AdaptiveAttention
from captioner.models.attention import AttentionSettings
from captioner.models.base_captioner import BaseCaptioner
from captioner.models.captioner import Captioner
from captioner.models.encoder import Encoder
from captioner.models.language_model import LanguageModel, initialise
from captioner.models.layered_attention import LayeredAttention
from captioner.models.show_attend_tell import ShowAttendTell
from captioner.models.up_down import UpDown
from captioner.models.word_layers import DropoutRates, WordLayers


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
    None is an LSTM. A model that attends takes images of so many `regions`, None of any number;
    ConfigError where it is one."""
    if config.attends and regions == 1:
        raise ConfigError(
            f"model={config.kind} attends to the regions of a grid, but these features are pooled: "
            "one region an image"
        )
    model = KINDS[config.kind](
        config,
        vocab_size,
        rnn or schema.RnnConfig(),
        feature_dim=feature_dim,
        feature_norm=chosen_norm(config.feature_norm, trained=encoder is not None),
        feature_dropout=config.feature_dropout,
        encoder=encoder,
        **({"regions": regions} if config.attends else {}),
    )
    for name, part in model.named_children():
        if name != "encoder":
            _initialise(part, config)
    return model


def chosen_norm(feature_norm: str, *, trained: bool) -> str:
    """What `feature_norm` auto is, of a `trained` encoder's features and of others."""
    if feature_norm != "auto":
        return feature_norm
    return "none" if trained else "standardise"


def _show_and_tell(
    config: schema.ModelConfig, vocab_size: int, rnn: schema.RnnConfig, **image: Any
) -> Captioner:
    return Captioner(language_model=_language_model(config, vocab_size, rnn), **image)


def _layered_attention(
    config: schema.LayeredAttentionConfig, vocab_size: int, rnn: schema.RnnConfig, **image: Any
) -> LayeredAttention:
    return LayeredAttention(
        language_model=_language_model(config, vocab_size, rnn),
        attention=_attention(config, heads=config.heads),
        join=config.join,
        **image,
    )


def _adaptive_attention(
    config: schema.AdaptiveAttentionConfig, vocab_size: int, rnn: schema.RnnConfig, **image: Any
) -> AdaptiveAttention:
    words, attention = _word_layers(config, vocab_size, rnn), _attention(config)
    return AdaptiveAttention(words=words, attention=attention, **image)


def _show_attend_tell(
    config: schema.ShowAttendTellConfig, vocab_size: int, rnn: schema.RnnConfig, **image: Any
) -> ShowAttendTell:
    return ShowAttendTell(
        words=_word_layers(config, vocab_size, rnn),
        attention=_attention(config),
        doubly_stochastic=config.doubly_stochastic,
        **image,
    )


def _up_down(
    config: schema.UpDownConfig, vocab_size: int, rnn: schema.RnnConfig, **image: Any
) -> UpDown:
    words, attention = _word_layers(config, vocab_size, rnn), _attention(config)
    return UpDown(words=words, attention=attention, **image)


# By model.kind: a function of the configuration, of V and of the recurrent layers' configuration.
KINDS: dict[str, Callable[..., BaseCaptioner]] = {
    "show_and_tell": _show_and_tell,
    "layered_attention": _layered_attention,
    "adaptive_attention": _adaptive_attention,
    "show_attend_tell": _show_attend_tell,
    "up_down": _up_down,
}


def _language_model(
    config: schema.ModelConfig, vocab_size: int, rnn: schema.RnnConfig
) -> LanguageModel:
    return LanguageModel(
        vocab_size=vocab_size,
        embedding_dim=config.embedding_dim,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        dropout=_rates(config, rnn),
        regularisation=ActivationRegularisation(
            activation=config.activation_regularisation,
            temporal=config.temporal_activation_regularisation,
        ),
        tie_embeddings=config.tie_embeddings,
        backend=config.backend,
        kind=rnn.kind,
        **({} if rnn.rounds is None else {"rounds": rnn.rounds}),
    )


def _word_layers(config: schema.ModelConfig, vocab_size: int, rnn: schema.RnnConfig) -> WordLayers:
    return WordLayers(
        vocab_size=vocab_size,
        embedding_dim=config.embedding_dim,
        hidden_size=config.hidden_size,
        dropout=_rates(config, rnn),
        tie_embeddings=config.tie_embeddings,
        backend=config.backend,
    )


def _rates(config: schema.ModelConfig, rnn: schema.RnnConfig) -> DropoutRates:
    return DropoutRates(
        input=config.input_dropout,
        output=config.output_dropout,
        layer=config.layer_dropout,
        variational=rnn.variational_dropout,
        embedding=config.embedding_dropout,
        recurrent=config.recurrent_dropout,
    )


def _attention(config: schema.AttentionConfig, heads: int = 1) -> AttentionSettings:
    return AttentionSettings(
        dim=config.attention_dim,
        heads=heads,
        region_dropout=config.region_dropout,
        weight_dropout=config.attention_dropout,
    )


def _initialise(part: nn.Module, config: schema.ModelConfig) -> None:
    initialise(part, scheme=config.init, scale=config.init_scale, forget_bias=config.forget_bias)
