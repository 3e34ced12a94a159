"""What loads the samples of a run fits its model, or the run is refused with the setting that is wrong."""

import json

import pytest

from hetjax.config.build import batch_shapes, batched
from hetjax.config.build_loader import make_loader, row_capacity
from hetjax.config.run_config import load_config
from hetjax.data.chat import load_tokenizer
from hetjax.errors import ConfigError, DataError
from tests.harness.paths import ROOT

CONFIG = ROOT / "configs/omni_tiny.yaml"


def config_of(*arguments):
    return load_config(["--config", str(CONFIG), *arguments])[0]


def parts_of(*arguments):
    """The settings of the data and of the model."""
    config = config_of(*arguments)
    return config.data, config.model


def test_shapes_of_batches_and_prompts_are_those_of_the_capacity():
    config = config_of()
    assert batch_shapes(config.data, config.model)["llm"]["segments"].shape == (16, 320)
    assert batch_shapes(config.data, config.model)["vision"]["video_patches"].shape == (16, 56, 96)
    prompts = batched(make_loader(config.data, config.model).shapes(training=False), 5)
    assert set(prompts["llm"]) == {"tokens", "image_positions", "audio_positions"}
    assert prompts["audio"]["waveforms"].shape == (5, 3, 4800)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model.without", "[audio]"], r"processor.clips is 3, .* no audio encoder"),
        (["--data.processor.clips", "0"], r"processor.clips is 0, .* an audio encoder"),
        (["--model.without", "[vision]"], r"processor.image_rows is 84, but the model takes none"),
        (
            ["--data.processor.image_rows", "0", "--data.processor.video_rows", "0"],
            "image_rows and video_rows are 0, but the model has a vision encoder",
        ),
    ],
)
def test_what_does_not_fit_the_encoders_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        row_capacity(*parts_of(*arguments))


def test_a_vocabulary_that_lacks_rows_is_refused():
    parts = parts_of("--model.changes", "{llm.vocab_size: 200}")
    with pytest.raises(ConfigError, match=r"vocab_size is 200, .* has 288"):
        make_loader(*parts)


def test_files_beside_the_tokenizer_say_what_ends_an_answer_and_how_a_chat_reads(tmp_path):
    load_tokenizer(None)._model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 11]}))
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    processor = make_loader(*parts_of("--data.tokenizer", str(tmp_path / "tokenizer.json"))).processor
    assert processor.tokenizer.stop_ids == (2, 11)
    assert processor.template.render([{"role": "user", "content": "x"}], add_generation_prompt=True).text == "x"


@pytest.mark.parametrize(
    "files, stops",
    [
        ({"config.json": {"eos_token_id": 2}}, (2,)),
        ({"config.json": {"text_config": {"eos_token_id": [2, 11]}}, "generation_config.json": {}}, (2, 11)),
        ({"config.json": {"eos_token_id": 2}, "generation_config.json": {"eos_token_id": 1}}, (1,)),
        ({"config.json": {"eos_token_id": None}}, (11,)),  # the first end that the tokenizer knows
    ],
)
def test_what_ends_an_answer_may_stand_in_config_json_alone(tmp_path, files, stops):
    load_tokenizer(None)._model.save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    processor = make_loader(*parts_of("--data.tokenizer", str(tmp_path))).processor
    assert processor.tokenizer.stop_ids == tuple(dict.fromkeys((*stops, 11)))  # and <|im_end|>, by the template


def test_the_built_in_template_is_not_taken_for_a_tokenizer_without_its_marks(tmp_path):
    (tmp_path / "tokenizer.json").write_text(load_tokenizer(None)._model.to_str().replace("<|im_", "<|in_"))
    with pytest.raises(ConfigError, match=r"no chat template beside .* lacks <\|im_start\|> and <\|im_end\|>"):
        make_loader(*parts_of("--data.tokenizer", str(tmp_path)))


def test_a_template_that_is_named_is_read_or_refused(tmp_path):
    (tmp_path / "mine.jinja").write_text("mine")
    processor = make_loader(*parts_of("--data.processor.chat_template", str(tmp_path / "mine.jinja"))).processor
    assert processor.template.render([], add_generation_prompt=True).text == "mine"
    for path, message in ((tmp_path, "has no chat template"), (tmp_path / "absent", "does not exist")):
        with pytest.raises(DataError, match=message):
            make_loader(*parts_of("--data.processor.chat_template", str(path)))


def test_settings_that_went_elsewhere_say_where():
    for setting, place in (
        ("image_size", "images take model.vision.image_size"),
        ("images_per_sample", "give data.processor.images;"),
        ("max_shift", "give data.processor.max_shift"),
    ):
        with pytest.raises(ConfigError, match=place):
            config_of(f"--data.{setting}", "1")
    with pytest.raises(ConfigError, match=r"leave data\.processor out"):
        config_of("--data.processor", "null")
