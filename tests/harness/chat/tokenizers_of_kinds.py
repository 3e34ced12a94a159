"""Small tokenizers of the kinds that released models have."""

import json
from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.harness.chat.conversations import CASES, WORDS

MARKS = [
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|end|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<image>", "<img>", "</img>",
]  # fmt: skip
PLAIN = ["<think>", "</think>", "<tool_call>", "</tool_call>"]  # added, but not special, as Qwen has them
CORPUS = [*WORDS * 20, *(case.source for case in CASES.values()), "user assistant system tool The weather of a city"]
KINDS = ("byte_bpe", "metaspace_always", "metaspace_first", "prepend", "unigram")


@cache
def tokenizer_json(kind: str) -> str:
    """The tokenizer.json of a kind."""
    model = _MAKERS[kind]()
    model.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    model.add_tokens([AddedToken(mark, normalized=False) for mark in PLAIN])
    return model.to_str()


def _byte_bpe() -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    return model


def _sentence_piece(kind: str) -> tokenizers.Tokenizer:
    """BPE with bytes for what it does not know, as of Llama 2, and the space before a text in one of its three ways."""
    model = tokenizers.Tokenizer(models.BPE())
    if kind == "prepend":
        model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        texts = [text.replace(" ", "▁") for text in CORPUS]
    else:
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        texts = CORPUS
    model.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    vocab = model.get_vocab()
    merges = [tuple(each) if isinstance(each, list) else tuple(each.split(" ")) for each in _merges(model)]
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(vocab, key=vocab.get)]
    ids = {word: number for number, word in enumerate(dict.fromkeys(words))}
    made = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer, pre = model.normalizer, model.pre_tokenizer
    if pre is not None:
        made.pre_tokenizer = pre
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def _merges(model: tokenizers.Tokenizer) -> list:
    return json.loads(model.to_str())["model"]["merges"]


def _unigram() -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.Unigram())
    model.normalizer = normalizers.NFC()
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    model.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False, n_sub_iterations=1
    )
    model.train_from_iterator(CORPUS, trainer)
    return model


_MAKERS = {
    "byte_bpe": _byte_bpe,
    "metaspace_always": lambda: _sentence_piece("always"),
    "metaspace_first": lambda: _sentence_piece("first"),
    "prepend": lambda: _sentence_piece("prepend"),
    "unigram": _unigram,
}
