"""The error that a model raises when its config, its stage cut or its inputs do not fit."""


class ModelError(ValueError):
    """A model cannot be built, cut or called as asked; the message names the values and the fix."""
