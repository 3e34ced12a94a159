"""Layers that the model families share. Each file holds one."""
