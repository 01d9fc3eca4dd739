"""Runs gathered from their folders, ranked in a table and shown on a page."""
