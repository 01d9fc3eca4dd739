"""From a step function to captions: greedy, beam search, diverse beam search, sampling."""
