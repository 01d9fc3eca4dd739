"""Captions and pictures: from files on disk to packed batches. Knows nothing of models."""
