"""Image captioning and recurrent language models: a language model whose first word is the image."""

__version__ = "0.1.0"
