"""From conversations with text, images, videos and sound to the arrays of a model that sees and hears."""

from hetjax.data.chat.collate import make_arrays, packed_rows, prompt_lengths, row_shapes
from hetjax.data.chat.config import ProcessorConfig
from hetjax.data.chat.messages import Chat, Part, Turn, parse_line, parse_messages
from hetjax.data.chat.packing import pack
from hetjax.data.chat.processor import Processor
from hetjax.data.chat.row_capacity import Room
from hetjax.data.chat.sample import Need, OmniSample
from hetjax.data.chat.special_tokens import OmniTokenizer, load_omni_tokenizer
from hetjax.data.chat.template import ChatTemplate, load_template

__all__ = [
    "Chat",
    "ChatTemplate",
    "Need",
    "OmniSample",
    "OmniTokenizer",
    "Part",
    "Processor",
    "ProcessorConfig",
    "Room",
    "Turn",
    "load_omni_tokenizer",
    "load_template",
    "make_arrays",
    "pack",
    "packed_rows",
    "parse_line",
    "parse_messages",
    "prompt_lengths",
    "row_shapes",
]
