"""Marks that stand in few files."""

OF_FEW_FILES = ("alone", "live", "target")
"""Where one of these is all that is asked for, `tests/conftest.py` reads only the files that name it."""
