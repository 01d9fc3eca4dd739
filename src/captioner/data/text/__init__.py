"""Text: files, tokens, windows."""
