"""The error that a layout or a placement raises."""


class PlacementError(ValueError):
    """Degrees, devices or dims do not fit; the message names the module, the values and the fix."""
