"""The programs of a stage: forward, backward, update and end of step."""
