import dataclasses

import jsonargparse
import pytest

from hetjax.data import DataConfig
from hetjax.errors import ConfigError

VALID = {"train": "a", "seq_len": 8, "batch_size": 1}


@pytest.mark.parametrize(
    "setting",
    [
        {"seq_len": 1},
        {"batch_size": 0},
        {"epochs": 0},
        {"seed": -1},
        {"workers": -1},
        {"max_bad_share": 1.5},
        {"max_bad_share": float("nan")},
    ],
    ids=str,
)
def test_a_senseless_value_is_refused_by_name(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(ConfigError, match=rf"data\.{name} is {value}"):
        DataConfig(**VALID | setting)


def test_every_setting_has_its_own_words_in_the_command_line_help():
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(DataConfig, "data")
    described = {action.dest.removeprefix("data."): action.help for action in parser._actions}
    for field in dataclasses.fields(DataConfig):
        assert described[field.name], field.name


def test_settings_come_from_the_command_line():
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--data", type=DataConfig)
    args = ["--data.train=a", "--data.seq_len=9", "--data.batch_size=2", "--data.epochs=null"]
    assert parser.instantiate(parser.parse_args(args)).data == DataConfig(train="a", seq_len=9, batch_size=2)
