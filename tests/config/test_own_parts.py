"""What a user's own file defines, named in a YAML by class_path: modules, schemas of data, processors."""

import json
import sys
import textwrap

import numpy as np
import pytest
import yaml

from hetjax.config.build import build_graph
from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import load_config
from hetjax.data.sources import open_train
from hetjax.errors import ConfigError, DataError
from hetjax.models import ModelError
from hetjax.models.own_module import OwnModule
from hetjax.stages.flat_state import flatten_module

OWN = """
    from flax import nnx
    from hetjax.data.chat import Processor
    from hetjax.models import LanguageModel, DecoderConfig


    class Encoder(nnx.Module):
        def __init__(self, image_size: int, output_width: int, *, rngs):
            self.image_size, self.output_width, self.tokens_per_image = image_size, output_width, 1
            self.linear = nnx.Linear(3 * image_size**2, output_width, rngs=rngs)

        def __call__(self, images):
            return {"tokens": self.linear(images.reshape(*images.shape[:2], -1))}


    class Model(LanguageModel):
        def __init__(self, doubled: bool, *, rngs, **sizes):
            super().__init__(DecoderConfig(**sizes), rngs=rngs)
            self.width, self.vocab_size, self.doubled = sizes["width"], sizes["vocab_size"], doubled

        def __call__(self, **inputs):
            outputs = super().__call__(**inputs)
            return {"loss": 2 * outputs["loss"]} if self.doubled else outputs


    class Narrow(nnx.Module):
        def __init__(self, *, rngs):
            pass

        def __call__(self, images):
            return {"tokens": images}


    class Loud(Processor):
        def __init__(self, *arguments, mark, **others):
            super().__init__(*arguments, **others)
            self.mark = mark


    def as_chat(sample, *, question):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": sample["label"]}]
        return {"messages": turns}


    class Asking:
        def __init__(self, question: str, answer: str = "label"):
            self.question, self.answer = question, answer

        def __call__(self, sample):
            return as_chat({"label": sample[self.answer]}, question=self.question)


    def broken(sample):
        return {"messages": sample["nothing"]}


    NUMBER = 3
"""


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_parts", None)


def own(name: str, **init_args) -> str:
    return json.dumps({"class_path": f"my_parts.{name}", "init_args": init_args})


def test_modules_of_ones_own_are_built_and_written_down(own_file, make_config, tiny_yaml, tmp_path):
    sizes = dict(vocab_size=40, width=24, layers=1, heads=4, kv_heads=2, head_dim=6, mlp_width=48)
    changes = ["--model.vision", own("Encoder", image_size=8, output_width=24)]
    changes += ["--model.llm", own("Model", doubled=True, **sizes)]
    config, resolved = load_config(["--config", str(tiny_yaml), *changes])
    assert [type(each) for each in config.model.components.values()] == [OwnModule, OwnModule]
    (tmp_path / "again.yaml").write_text(resolved)
    assert load_config(["--config", str(tmp_path / "again.yaml")]) == (config, resolved)
    assert yaml.safe_load(resolved)["model"]["vision"]["class_path"] == "my_parts.Encoder"
    graph = build_graph(config.model)
    assert flatten_module(graph.abstract("vision"))[1]["linear/kernel"].shape == (192, 24)
    assert graph.abstract("llm").doubled and graph.sink == "llm"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (own("Nothing"), r"my_parts \(.*my_parts.py\) has no class or function Nothing; it has .*Encoder"),
        (own("NUMBER"), r"has no class or function NUMBER"),
        ('{"class_path": "no_file.Encoder"}', r"there is no module no_file; .* PYTHONPATH"),
        ('{"class_path": "Encoder"}', r"class_path is 'Encoder'; give the file and the name in it"),
        (own("Encoder", image_size=8), r"does not take these init_args: missing a required argument: .output_width"),
        (own("Encoder", image_size=8, output_width=12), r"model.vision.output_width is 12, but model.llm.width is 24"),
        (own("Narrow"), r"model.vision: my_parts.Narrow has no attribute output_width"),
        (own("as_chat", question="?"), r"as_chat does not take these init_args"),
    ],
)
def test_what_does_not_fit_is_said(own_file, make_config, given, said):
    with pytest.raises((ConfigError, ModelError), match=said):
        make_config("--model.vision", given)


def test_a_schema_of_ones_own_makes_samples(own_file, make_config, tiny_yaml, tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"label": "seven"}\n')
    source = {"path": str(tmp_path / "labels.jsonl")}
    for name in ("as_chat", "Asking"):
        given = json.dumps([{**source, "schema": json.loads(own(name, question="Which?"))}])
        config, resolved = load_config(["--config", str(tiny_yaml), "--data.train", given])
        line = open_train(config.data).joined[0]
        assert [turn["content"] for turn in line.text["messages"]] == ["Which?", "seven"]
        (tmp_path / "again.yaml").write_text(resolved)
        assert load_config(["--config", str(tmp_path / "again.yaml")])[1] == resolved
    data = make_config("--data.train", json.dumps({**source, "schema": json.loads(own("broken"))})).data
    with pytest.raises(DataError, match=r"labels.jsonl:1: broken raised KeyError for the sample: 'nothing'"):
        open_train(data).joined[0]
    with pytest.raises(ModelError, match=r"data.train.schema: my_parts .* has no class or function none"):
        make_config("--data.train", json.dumps({**source, "schema": {"class_path": "my_parts.none"}}))


def test_a_processor_of_ones_own_takes_the_place_of_ours(own_file, make_config):
    big = ("--model.llm.vocab_size", "300", "--data.seq_len", "40")
    config = make_config(*big, "--data.own_processor", own("Loud", mark="!"))
    assert make_loader(config.data, config.model).processor.mark == "!"
    config = make_config(*big, "--data.own_processor", own("as_chat", question="?"))
    with pytest.raises((ConfigError, ModelError), match=r"data.own_processor"):
        make_loader(config.data, config.model)


def test_kinds_of_our_own_encoders_are_as_before(make_config):
    assert make_config().model.vision.type == "vit"
    assert np.isfinite(make_config().model.vision.norm_epsilon)
