"""Evaluate a training state on held-out samples: their loss, and the answers to their questions by metrics."""
