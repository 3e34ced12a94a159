"""Whether a run fits the devices that it is for: all programs compiled, what a step holds added up, and a report."""
