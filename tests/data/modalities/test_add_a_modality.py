"""A modality that only its declaration makes known goes from a message to a batch, and through an encoder to a loss."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax import ModuleGraph
from hetjax.data import DataConfig, Line, SampleLoader, TrainData
from hetjax.data.chat import (
    ChatTemplate,
    Processor,
    ProcessorConfig,
    load_tokenizer,
    make_arrays,
    parse_line,
    parse_messages,
    row_shapes,
)
from hetjax.data.media.held_media import MediaBytes
from hetjax.data.modalities import MODALITIES, Modality, Placeholder, register
from hetjax.data.modalities.modality import ArraySpec, EncoderInputs, Medium, PromptPart, Resource
from hetjax.data.modalities.prompt_order import Tokens
from hetjax.data.rows.row_capacity import just_enough, unlimited
from hetjax.data.schemas import check_columns, normalised
from hetjax.errors import ConfigError, DataError

TOKENS = 3  # of every depth map


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthSettings:
    maps: int = 0
    side: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthEncoderConfig:
    side: int
    width: int


class Depth(Modality[np.ndarray]):
    """Depth maps of one size, in files of NumPy."""

    name = "depth"
    placeholder = Placeholder(
        name="depth", module="depth", token="<depth_token>", start="<depth_start>", end="<depth_end>"
    )
    resources = (Resource("maps", "depth maps", "processor.others.depth.maps"),)
    suffixes = ("dpt",)

    def __init__(self, config, encoder):
        self._settings = config.settings_of("depth", DepthSettings)
        if self._settings.maps and (encoder is None or encoder.side != self._settings.side):
            raise ConfigError(f"processor.others.depth.side is {self._settings.side}, which the model does not take")
        self.capacity = {"maps": self._settings.maps}
        self.tokens = TOKENS * self._settings.maps

    @classmethod
    def sized(cls, config, amounts, arrays=()):
        return config.with_settings("depth", maps=amounts["maps"])

    def read(self, value):
        depth = np.load(value) if isinstance(value, str | bytes) or hasattr(value, "open") else value
        if depth.shape != (self._settings.side, self._settings.side):
            raise DataError(f"a depth map has shape {depth.shape}")
        return depth

    def prepare(self, media, budget):
        tokens = [Tokens(kind="depth", count=TOKENS)]
        return [
            PromptPart(items=["depth: ", *tokens], media=[Medium("depth", depth, TOKENS)], use={"maps": 1})
            for depth in media
        ]

    def shapes(self):
        side = self._settings.side
        return {"maps": ArraySpec((self._settings.maps, side, side), np.float32)}

    def encoder_inputs(self, arrays):
        (shape, dtype) = self.shapes()["maps"]
        maps = np.zeros(shape, dtype)
        maps[: len(arrays)] = arrays if arrays else 0
        own = [np.arange(TOKENS * i, TOKENS * (i + 1), dtype=np.int32) for i in range(len(arrays))]
        return EncoderInputs({"maps": maps}, own)


class DepthEncoder(nnx.Module):
    def __init__(self, config, rngs):
        self.linear = nnx.Linear(config.side**2, TOKENS * config.width, rngs=rngs)
        self.width = config.width

    def __call__(self, maps):
        batch, count = maps.shape[:2]
        return {"tokens": self.linear(maps.reshape(batch, count, -1)).reshape(batch, count * TOKENS, self.width)}


class LanguageModel(nnx.Module):
    """Its loss is the sum of what stands at the placeholders of the first row."""

    def __init__(self, rngs):
        self.table = nnx.Embed(512, 8, rngs=rngs)

    def __call__(self, tokens, labels, loss_weights, depth_tokens, depth_positions):
        x = self.table(tokens)
        x = x.at[jnp.arange(len(x))[:, None], depth_positions].set(depth_tokens, mode="drop")
        return {"loss": x.sum(), "rows": x}


@pytest.fixture(autouse=True)
def depth(monkeypatch):
    monkeypatch.setitem(MODALITIES, "depth", None)  # what is registered goes again
    register(Depth)


ENCODER = DepthEncoderConfig(side=4, width=8)
MAPS = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)


def make_processor(maps=2, seq_len=160, **others):
    config = ProcessorConfig(others={"depth": {"maps": maps, **others}})
    encoders = {"depth": ENCODER}
    return Processor(config, load_tokenizer(None), ChatTemplate(), seq_len=seq_len, encoders=encoders)


def chat(*maps, text="How far?"):
    content = [*({"type": "depth", "depth": each} for each in maps), {"type": "text", "text": text}]
    return parse_messages(
        [{"role": "user", "content": content}, {"role": "assistant", "content": "near"}], where="here"
    )


def test_a_message_becomes_ids_and_arrays():
    processor = make_processor()
    one, two = processor.sample(chat(MAPS[0]), training=True), processor.sample(chat(MAPS[1], MAPS[2]), training=True)
    tokenizer = processor.tokenizer
    part = "depth: <depth_start>" + "<depth_token>" * TOKENS + "<depth_end>"
    want = f"<|im_start|>user\n{part}{part}How far?<|im_end|>\n<|im_start|>assistant\nnear<|im_end|>\n"
    assert two.ids.tolist() == tokenizer.encode(want)
    assert len(set(tokenizer.placeholders.values())) == len(tokenizer.placeholders) == 9
    arrays = make_arrays(processor, [[one], [two]], training=True)
    assert set(arrays) == {"llm", "depth"}
    for module, ports in row_shapes(processor.capacity, training=True).items():
        for port, (shape, dtype) in ports.items():
            assert arrays[module][port].shape == (2, *shape) and arrays[module][port].dtype == dtype
    np.testing.assert_array_equal(arrays["depth"]["maps"], [[MAPS[0], np.zeros((4, 4))], MAPS[1:]])
    for row, count in enumerate((1, 2)):
        positions = arrays["llm"]["depth_positions"][row]
        placeholders = np.flatnonzero(arrays["llm"]["tokens"][row] == tokenizer.placeholder("depth"))
        assert positions[: TOKENS * count].tolist() == placeholders.tolist()
        assert np.all(positions[TOKENS * count :] == 160)


def test_the_batch_goes_through_an_encoder_into_a_language_model():
    processor = make_processor()
    arrays = make_arrays(processor, [[processor.sample(chat(MAPS[0], MAPS[1]), training=True)]], training=True)
    graph = ModuleGraph({"depth": lambda rngs: DepthEncoder(ENCODER, rngs), "llm": LanguageModel}, Depth.edges(ENCODER))
    encoder, llm = graph.build("depth", 0), graph.build("llm", 0)
    tokens = encoder(**arrays["depth"])["tokens"]
    rows = llm(**arrays["llm"], depth_tokens=tokens)["rows"]
    np.testing.assert_array_equal(rows[0, arrays["llm"]["depth_positions"][0]], tokens[0])


def test_files_of_a_dataset_and_their_marks(tmp_path):
    np.save(tmp_path / "a.npy", MAPS[0])
    messages = [{"role": "user", "content": "See <depth> here."}, {"role": "assistant", "content": "near"}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": messages, "depths": ["a.npy"]}) + "\n")
    processor = make_processor()
    config = DataConfig(train=str(tmp_path / "train.jsonl"), seq_len=160, batch_size=1, workers=0)
    batch = next(TrainData(SampleLoader(config, processor)))
    np.testing.assert_array_equal(batch.arrays["depth"]["maps"][0, 0], MAPS[0])


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": [{"type": "depth", "url": "a.npy"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "depth_url", "depth_url": {"url": "a.npy"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "depth"}]}], "depths": ["a.npy"]},
        {"conversations": [{"from": "human", "value": "<depth>"}], "depth": "a.npy"},
        {"question": "<depth>", "answer": "near", "depths": "a.npy"},
        {"text": "near", "depth": {"path": "a.npy", "bytes": None}},
        {"key": "a", "text": "near", "map.dpt": MediaBytes(name="map.dpt", data=b"x")},
    ],
)
def test_every_schema_knows_it(record):
    held = {name: value for name, value in record.items() if isinstance(value, MediaBytes)}
    line = normalised(Line(text=record, where="a:1", media=held), Path("/data"))
    chat = parse_line(line.text, where="a:1", folder=line.folder)
    assert [(part.kind, str(part.value)) for part in chat.media] in ([("depth", "/data/a.npy")], [("depth", "map.dpt")])
    assert check_columns({"depths": "maps"}, "data.train.columns")


def test_the_sizes_of_one_prompt_are_those_that_it_takes():
    config = unlimited(ProcessorConfig(others={"depth": {"side": 4}}), ["depth"], {"depth": ENCODER})
    processor = Processor(config, load_tokenizer(None), ChatTemplate(), seq_len=1000, encoders={"depth": ENCODER})
    fitted = just_enough(config, processor.sample(chat(*MAPS)), {"depth": ENCODER})
    assert fitted.others == {"depth": {"side": 4, "maps": 3}}


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        DataError, match=r"here: the sample takes 3 depth maps, more than 2 \(processor.others.depth.maps"
    ):
        make_processor().sample(chat(*MAPS))
    with pytest.raises(DataError, match=r"here: there is depth in it, but processor.others.depth.maps is 0"):
        make_processor(maps=0).sample(chat(MAPS[0]))
    with pytest.raises(DataError, match=r"here: a depth map has shape"):
        make_processor().sample(chat(MAPS[0][:2]))
    with pytest.raises(ConfigError, match=r"side is 8, which"):
        make_processor(side=8)
    with pytest.raises(ConfigError, match=r"processor.others.depth has no setting size; it has maps, side"):
        make_processor(size=8)
    config = ProcessorConfig(others={"smell": {"maps": 1}})
    with pytest.raises(
        ConfigError, match=r"processor.others names smell; the modalities are image, video, audio, depth"
    ):
        Processor(config, load_tokenizer(None), ChatTemplate(), seq_len=9, encoders={})
