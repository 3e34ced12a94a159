"""Make the arrays that the modules of a multimodal model take, of conversations with text and media."""

from hetjax.data.chat.chat_rendering import end_mark
from hetjax.data.chat.collate import make_arrays, packed_rows, prompt_lengths, row_shapes
from hetjax.data.chat.messages import Chat, Part, Turn, parse_line, parse_messages
from hetjax.data.chat.packing import pack
from hetjax.data.chat.processor import Processor
from hetjax.data.chat.row_capacity import RowCapacity
from hetjax.data.chat.sample import PlacedMedium, RowUse, Sample
from hetjax.data.chat.template import ChatTemplate, load_template
from hetjax.data.chat.tokenizer import Tokenizer, load_tokenizer
from hetjax.data.modalities.config import ProcessorConfig

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
    "end_mark",
    "load_template",
    "load_tokenizer",
    "make_arrays",
    "pack",
    "packed_rows",
    "parse_line",
    "parse_messages",
    "prompt_lengths",
    "row_shapes",
]
