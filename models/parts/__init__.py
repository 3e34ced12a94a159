"""Layers that the model families share, one a file. What splits them over devices is `hetjax.models.parallel`."""
