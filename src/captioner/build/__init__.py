"""Configuration -> objects: data, models, trainers and what is loaded from checkpoints."""
