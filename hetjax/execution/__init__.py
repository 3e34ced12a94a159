"""A whole training step: all its programs, and the executor that dispatches them by the schedule."""
