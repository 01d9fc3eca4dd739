"""From hypotheses and references to scores and pages. Knows nothing of models."""
