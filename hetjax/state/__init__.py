"""The training state: its first value, and whole modules joined from their stages."""
