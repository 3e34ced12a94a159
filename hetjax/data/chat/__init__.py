"""Make the arrays that the modules of a multimodal model take, of conversations with text and media."""

from hetjax.data.chat.chat_rendering import end_mark, ending_of
from hetjax.data.chat.collate import make_arrays, prompt_lengths, row_routes, row_shapes
from hetjax.data.chat.messages import Chat, Part, Turn, parse_line, parse_messages
from hetjax.data.chat.processor import Processor
from hetjax.data.chat.template import ChatTemplate, load_template
from hetjax.data.chat.tokenizer import Tokenizer, load_tokenizer
from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.rows.packing import best_fit_rows
from hetjax.data.rows.row_capacity import RowCapacity
from hetjax.data.rows.sample import PlacedMedium, RowUse, Sample

__all__ = [
    "Chat",
    "ChatTemplate",
    "Part",
    "PlacedMedium",
    "Processor",
    "ProcessorConfig",
    "RowCapacity",
    "RowUse",
    "Sample",
    "Tokenizer",
    "Turn",
    "best_fit_rows",
    "end_mark",
    "ending_of",
    "load_template",
    "load_tokenizer",
    "make_arrays",
    "parse_line",
    "parse_messages",
    "prompt_lengths",
    "row_routes",
    "row_shapes",
]
