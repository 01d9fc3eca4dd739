"""Looks inside models: cells, search trees, surprise."""
