"""From a prompt to more text: a language model, its codec and the sampler put together."""

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captioner.data.text.codec import OF_BYTES, TextCodec
from captioner.generation import Constraints, SamplingParams, sample
from captioner.models.language_model import LanguageModel

Listener = Callable[[int, str], None]


@dataclass(frozen=True)
class Sample:
    """One text written after a prompt; `finished` says why it is no longer.

    log_probs: the model's own log-probability (nats) of every token drawn, those of the stop text
    included. finished: length, stop or document (its end was drawn).
    """

    text: str
    log_probs: tuple[float, ...]
    finished: str


class GrowingText:
    """A sample's text as it is written: whole characters, and nothing that may become `stop`."""

    def __init__(self, codec: TextCodec, stop: str | None) -> None:
        self.codec, self.stop = codec, stop
        self.text = ""
        self.stopped = False
        self._shown = 0
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Append a token; what can be shown of the text that was not yet."""
        piece = "".join(self.codec.pieces([token]))
        if self.codec.unit in OF_BYTES:
            piece = self._bytes.decode(piece.encode("latin-1"))
        before = len(self.text)
        self.text += piece
        held = 0
        if self.stop is not None:
            found = self.text.find(self.stop, max(0, before - len(self.stop) + 1))
            if found >= 0:
                self.text, self.stopped = self.text[:found], True
            else:
                held = _overlap(self.text, self.stop)
        return self._show(len(self.text) - held)

    def rest(self) -> str:
        """What was held back, once nothing more is to come."""
        self.text += self._bytes.decode(b"", final=True)
        return self._show(len(self.text))

    def _show(self, end: int) -> str:
        shown = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return shown


def _overlap(text: str, stop: str) -> int:
    """How long an end of `text` is the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((k for k in range(longest, 0, -1) if text.endswith(stop[:k])), 0)


class TextGenerator:
    """Continues prompts; the model is put into evaluation mode for it.

    `listener` is called with a sample's number and the text that it has gained.
    """

    def __init__(
        self, model: LanguageModel, codec: TextCodec, *, listener: Listener | None = None
    ) -> None:
        self.model, self.codec, self.listener = model, codec, listener

    @torch.inference_mode()
    def samples(
        self,
        prompt: str,
        *,
        length: int,
        n: int = 1,
        seed: int = 0,
        stop: str | None = None,
        no_repeat_ngram: int = 0,
        **params: Any,
    ) -> list[Sample]:
        """`n` texts of at most `length` tokens after `prompt`, cut before the text `stop`.

        Text number k depends on the seed and k, not on how many are drawn with it. No n-gram of
        `no_repeat_ngram` tokens is written twice (0: any may be). `params` are those of
        `SamplingParams`. DataError when the prompt cannot be encoded.
        """
        *before, last = self._token_ids(prompt)
        self.model.eval()
        texts = [GrowingText(self.codec, stop) for _ in range(n)]

        def watch(rows: Tensor, tokens: Tensor) -> Tensor:
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                shown = texts[row].add(token)
                if self.listener is not None and shown:
                    self.listener(row, shown)
            stopped = [texts[row].stopped for row in rows.tolist()]
            return torch.tensor(stopped, dtype=torch.bool, device=rows.device)

        device = self.model.embedding.weight.device
        with self.model.tabulated():
            found = sample(
                self.model.step,
                self._state_after(before, n),
                self._constraints(last, length, no_repeat_ngram),
                batch_size=n,
                params=SamplingParams(**params),
                generator=torch.Generator(device=device).manual_seed(seed),
                watch=watch,
            )
        for number, text in enumerate(texts):
            if (shown := text.rest()) and self.listener is not None:
                self.listener(number, shown)
        return [
            Sample(
                text.text,
                one[0].log_probs,
                "stop" if text.stopped else "document" if one[0].finished else "length",
            )
            for text, one in zip(texts, found, strict=True)
        ]

    @property
    def _knows_ends(self) -> bool:
        """Whether it has seen documents end, in which case <bos> stands between them."""
        vocabulary = self.codec.vocabulary
        return vocabulary.counts[vocabulary.bos] > 0

    def _token_ids(self, prompt: str) -> list[int]:
        ids = self.codec.encode(prompt)
        return [self.codec.vocabulary.bos, *ids] if self._knows_ends or not ids else ids

    def _constraints(self, last: int, length: int, no_repeat_ngram: int) -> Constraints:
        vocabulary = self.codec.vocabulary
        banned = [vocabulary.pad, vocabulary.unk]
        banned += [] if self._knows_ends else [vocabulary.bos]
        banned += [] if self.codec.unit == "word" else [vocabulary.eos]
        eos = vocabulary.bos if self._knows_ends else None
        return Constraints(
            bos=last,
            eos=eos,
            max_length=length,
            banned=banned,
            no_repeat_ngram=no_repeat_ngram,
        )

    def _state_after(self, ids: list[int], n: int) -> tuple[Tensor, ...]:
        """The state after `ids`, the same for all n: each tensor [L, n, H]."""
        weight = self.model.embedding.weight
        layers, hidden = self.model.lstm.num_layers, self.model.lstm.hidden_size
        if not ids:
            cells = 2 if self.model.lstm.mode == "LSTM" else 1
            return tuple(weight.new_zeros(layers, n, hidden) for _ in range(cells))
        tokens = torch.tensor(ids, device=weight.device)
        state = self.model.read(self.model.embedding(tokens).unsqueeze(1))[1]
        return tuple(one.expand(-1, n, -1).contiguous() for one in state)
