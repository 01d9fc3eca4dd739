"""Trained models for elsewhere: a model card, and captioners as one ONNX graph."""
