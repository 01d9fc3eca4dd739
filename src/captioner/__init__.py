"""Image captioning and recurrent language models; a captioner's first word is the image."""

__version__ = "0.1.0"
