"""From conversations with text, images, videos and sound to the arrays of a model that sees and hears."""

from hetjax.processor.arrays import make_arrays, packed_rows, prompt_lengths, row_shapes
from hetjax.processor.config import ProcessorConfig
from hetjax.processor.messages import Chat, Part, Turn, parse_line, parse_messages
from hetjax.processor.packing import pack
from hetjax.processor.processor import Processor
from hetjax.processor.room import Room
from hetjax.processor.sample import Need, OmniSample
from hetjax.processor.template import ChatTemplate, load_template
from hetjax.processor.tokens import OmniTokenizer, load_omni_tokenizer

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
