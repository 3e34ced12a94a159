"""Load conversations with media from files on disk as batches in host memory, tokenized and padded.

`sources` opens datasets: `reading` has a file for each format, `schemas` brings samples to one dialect. `order`
shuffles and mixes them. `media` decodes files, `modalities` has a file for each kind of media. `chat` renders a chat
(`chat.chat_rendering`), tokenizes it and collates samples to arrays. `sample_loader` does all of this for one run; with
it `pipeline` streams training batches, `evaluation` held-out prompts.
"""

from hetjax.data.batches_ahead import BatchesAhead
from hetjax.data.chat import Tokenizer, load_tokenizer
from hetjax.data.check import DatasetSummary, check_dataset
from hetjax.data.config import DataConfig
from hetjax.data.demo_digits import write_digits
from hetjax.data.demo_digits_and_tones import write_digits_and_tones
from hetjax.data.demo_shapes import write_shapes
from hetjax.data.evaluation import EvalBatch, eval_batches
from hetjax.data.held_out_sets import HeldOutSet, held_out_sets
from hetjax.data.host_batch import HostBatch
from hetjax.data.loss_batches import LossBatch, loss_batches
from hetjax.data.pipeline import TrainData
from hetjax.data.reading import JsonlSource, Line, MediaFolder, Source, register_format
from hetjax.data.sample_loader import SampleLoader
from hetjax.data.source_config import EvalShare, SourceConfig
from hetjax.data.sources import open_eval, open_source, open_train

__all__ = [
    "BatchesAhead",
    "DataConfig",
    "DatasetSummary",
    "EvalBatch",
    "EvalShare",
    "HeldOutSet",
    "HostBatch",
    "JsonlSource",
    "Line",
    "LossBatch",
    "MediaFolder",
    "SampleLoader",
    "Source",
    "SourceConfig",
    "Tokenizer",
    "TrainData",
    "check_dataset",
    "eval_batches",
    "held_out_sets",
    "load_tokenizer",
    "loss_batches",
    "open_eval",
    "open_source",
    "open_train",
    "register_format",
    "write_digits",
    "write_digits_and_tones",
    "write_shapes",
]
