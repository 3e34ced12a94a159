"""The errors that a model raises when its config, its stage cut, its inputs or the layout in force do not fit."""


class ModelError(ValueError):
    """A model cannot be built, cut or called as asked; the message names the values and the fix."""


class LayoutError(ModelError):
    """A sequence or a number of heads does not divide as the layout in force asks; who runs the model adds its name."""
