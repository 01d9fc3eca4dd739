"""Captions and text from trained models."""
