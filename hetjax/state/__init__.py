"""The training state: its first value, and whole modules seen through their stages."""
