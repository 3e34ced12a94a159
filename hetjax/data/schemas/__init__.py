"""Bring the samples of a dataset, whatever their schema, to the one dialect of `hetjax.data.chat.messages`.

`dialect.normalised` chooses the schema by the keys of the sample: one with turns (`turns`), or one of `instructions`.
"""

from hetjax.data.schemas.columns import Columns, check_columns, likely
from hetjax.data.schemas.dialect import ABOUT, Schema, SchemaSource, normalised

__all__ = ["ABOUT", "Columns", "Schema", "SchemaSource", "check_columns", "likely", "normalised"]
