"""Inside models: cells, search trees, surprise."""
