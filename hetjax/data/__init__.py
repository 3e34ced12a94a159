"""Load conversations with media from files on disk as batches in host memory, tokenized and padded.

`sources` opens datasets: `reading` has a file for each format, `schemas` brings samples to one dialect. `order`
shuffles and mixes them. `media` decodes files, `modalities` has a file for each kind of media. `chat` renders a chat
(`chat.chat_rendering`), tokenizes it and collates samples to arrays. `pipeline` and `packed` stream training batches,
`evaluation` held-out prompts. Without a processor, `conversation` renders and `loading` collates.
"""

from hetjax.data.check import DatasetSummary, check_dataset
from hetjax.data.config import DataConfig
from hetjax.data.conversation import (
    Conversation,
    Message,
    Prompt,
    Sample,
    parse_conversation,
    render,
    render_prompt,
)
from hetjax.data.demo_digits import write_digits
from hetjax.data.demo_digits_and_tones import write_digits_and_tones
from hetjax.data.demo_shapes import write_shapes
from hetjax.data.evaluation import EvalBatch, eval_batches
from hetjax.data.images import load_image
from hetjax.data.packed import PackedData, train_data
from hetjax.data.pipeline import HostBatch, TrainData
from hetjax.data.reading import JsonlSource, Line, MediaFolder, Source, register_format
from hetjax.data.source_config import EvalShare, SourceConfig
from hetjax.data.sources import open_eval, open_source, open_train
from hetjax.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Conversation",
    "DataConfig",
    "DatasetSummary",
    "EvalBatch",
    "EvalShare",
    "HostBatch",
    "JsonlSource",
    "Line",
    "MediaFolder",
    "Message",
    "PackedData",
    "Prompt",
    "Sample",
    "Source",
    "SourceConfig",
    "Tokenizer",
    "TrainData",
    "check_dataset",
    "eval_batches",
    "load_image",
    "load_tokenizer",
    "open_eval",
    "open_source",
    "open_train",
    "parse_conversation",
    "register_format",
    "render",
    "render_prompt",
    "train_data",
    "write_digits",
    "write_digits_and_tones",
    "write_shapes",
]
