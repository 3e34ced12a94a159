"""The error of every layout or placement that cannot be."""


class PlacementError(ValueError):
    """Degrees, devices or dims do not fit; the message names the module, the values and the fix."""
