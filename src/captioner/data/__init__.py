"""Captions and images: from files on disk to packed batches. Knows nothing of models."""
