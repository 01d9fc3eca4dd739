"""Encoder, LSTM, language model, captioner. Knows nothing of files or configuration."""
