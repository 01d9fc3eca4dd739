"""Data sets on disk, one module a format, and what the formats share (splits, tables)."""
