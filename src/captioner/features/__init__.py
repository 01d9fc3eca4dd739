"""Image features: extraction, cache, storage."""
