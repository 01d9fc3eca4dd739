"""Operators over packed sequences and the choice of what computes them."""

from captioner.ops.additive_scores import additive_scores
from captioner.ops.backend import BACKENDS, choose_backend
from captioner.ops.dropout import dropout
from captioner.ops.gru_packed import gru_packed
from captioner.ops.linear_cross_entropy import linear_cross_entropy
from captioner.ops.lstm_packed import lstm_packed
from captioner.ops.lstm_step import lstm_step

__all__ = [
    "BACKENDS",
    "additive_scores",
    "choose_backend",
    "dropout",
    "gru_packed",
    "linear_cross_entropy",
    "lstm_packed",
    "lstm_step",
]
