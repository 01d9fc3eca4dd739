"""What prepare_flickr8k.py does."""

import dataclasses

from captioner import config as schema
from captioner.data.formats.prepare import prepare_flickr8k


def prepare(config: schema.PrepareConfig) -> str:
    """Download what is missing and verify it; the report."""
    return prepare_flickr8k(**dataclasses.asdict(config))
