"""A run that goes on says which settings changed, and needs a word where they change what is learned."""

import contextlib
import dataclasses

import pytest
import yaml

from hetjax.config.run_config import TrainConfig
from hetjax.data import DataConfig
from hetjax.errors import CheckpointError, ConfigError
from hetjax.training.resume import (
    FREE,
    SETTINGS_FILE,
    compare_datasets,
    fingerprints,
    settings_to_keep,
    start_or_resume,
)
from hetjax.training.run_folder import own_folder

BEFORE = {
    "steps": 10, "log_every": 5, "seed": 0, "placement": {"llm": {"tensor": 1}}, "optimizer": {"learning_rate": 0.1},
    "data": {"batch_size": 8, "eval": "a.jsonl", "train": ["a", "b"]},
}  # fmt: skip


def save(path, step):
    (path / "checkpoints" / str(step) / "description").mkdir(parents=True)
    (path / "checkpoints" / str(step) / "description" / "metadata").write_text("{}")


@pytest.fixture
def folder(tmp_path):
    """The folder of a run with a checkpoint of step 4."""
    save(tmp_path, 4)
    (tmp_path / SETTINGS_FILE).write_text(yaml.safe_dump(BEFORE, sort_keys=False))
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    with contextlib.closing(own_folder(tmp_path, is_main=True)) as owned:
        yield owned


def settings(**changes):
    now = {**BEFORE, **changes}
    return yaml.safe_dump(now, sort_keys=False)


def test_free_settings_are_printed_and_go_on(folder):
    now = settings(steps=20, placement={"llm": {"tensor": 2}, "vision": {}}, data={**BEFORE["data"], "eval": None})
    assert start_or_resume(folder, now, "same", overwrite=False) == [
        "changed since the run was started: steps: 10 -> 20",
        "changed since the run was started: placement.llm.tensor: 1 -> 2",
        "changed since the run was started: placement.vision: None -> {}",
        "changed since the run was started: data.eval: 'a.jsonl' -> None",
    ]
    assert start_or_resume(folder, settings(), "same", overwrite=False) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"optimizer": {"learning_rate": 0.2}}, "optimizer.learning_rate: 0.1 -> 0.2"),
        ({"data": {**BEFORE["data"], "batch_size": 16}}, "data.batch_size: 8 -> 16"),
        ({"data": {**BEFORE["data"], "batch_size": [1]}}, r"data.batch_size: 8 -> \[1\]"),
    ],
)
def test_those_of_the_experiment_need_a_word(folder, changes, named):
    with pytest.raises(ConfigError, match=rf"had other settings: {named}; give --resume changed to go on with"):
        start_or_resume(folder, settings(**changes), "same", overwrite=False)
    [line] = start_or_resume(folder, settings(**changes), "changed", overwrite=False)
    assert line.startswith("changed since the run was started: ")


def test_never_refuses_and_overwrite_deletes_the_run_alone(folder):
    with pytest.raises(ConfigError, match="a checkpoint of step 4, and resume is never; give another run_dir, or --ov"):
        start_or_resume(folder, settings(), "never", overwrite=False)
    [line] = start_or_resume(folder, settings(seed=7), "never", overwrite=True)
    assert "which had come to step 4, is deleted" in line
    assert sorted(path.name for path in folder.path.iterdir()) == ["notes.txt", "overwritten", "owner"]
    assert start_or_resume(folder, settings(), "never", overwrite=False) == []
    # Started again, by a launcher or a scheduler, the command that overwrote a run goes on with its own.
    save(folder.path, 2)
    [line] = start_or_resume(folder, settings(seed=7), "same", overwrite=True)
    assert "this command began the run" in line and (folder.path / "checkpoints" / "2").exists()
    [line] = start_or_resume(folder, settings(seed=8), "same", overwrite=True)
    assert "which had come to step 2, is deleted" in line and not (folder.path / "checkpoints").exists()


def test_what_a_folder_keeps_of_its_settings_deletes_nothing():
    kept = yaml.safe_load(settings_to_keep(settings(overwrite=True, resume="changed")))
    assert (kept["overwrite"], kept["resume"], kept["seed"]) == (False, "same", 0)


def test_settings_that_are_new_since_are_no_change_of_the_experiment(folder):
    now = settings(optimizer={"learning_rate": 0.1, "name": "adamw", "groups": []}, unheard=None)
    assert start_or_resume(folder, now, "same", overwrite=False) == [
        "changed since the run was started: optimizer.name: None -> 'adamw'"
    ]


@pytest.mark.parametrize("name", ["4", "4.damaged"])
def test_a_run_that_lost_its_checkpoints_does_not_begin_anew(folder, name):
    (folder.path / "checkpoints" / "4" / "description" / "metadata").unlink()
    (folder.path / "checkpoints" / "4").rename(folder.path / "checkpoints" / name)
    with pytest.raises(
        CheckpointError, match=f"holds no whole checkpoint, but {name}, which were some; put back a copy"
    ):
        start_or_resume(folder, settings(), "same", overwrite=False)
    assert start_or_resume(folder, settings(), "same", overwrite=True)


def test_settings_that_cannot_be_compared(folder):
    (folder.path / SETTINGS_FILE).write_bytes(b"a: [\xff")
    with pytest.raises(ConfigError, match=r"config.yaml, the settings of the run so far, cannot be read"):
        start_or_resume(folder, settings(), "changed", overwrite=False)
    (folder.path / SETTINGS_FILE).unlink()
    [line] = start_or_resume(folder, settings(), "same", overwrite=False)
    assert "is missing, so that no settings are compared" in line


def test_every_free_setting_exists():
    """One that is renamed must not be refused for its new name, nor stay free by its old one."""
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {name.partition(".")[0] for name in FREE} <= fields


def test_edited_files_need_a_word_and_new_or_moved_sources_none(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n{}\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    files = [{"path": str(tmp_path / f"{name}.jsonl"), "name": name} for name in "ab"]

    def found(*sources):
        return fingerprints(DataConfig(train=list(sources), seq_len=8, batch_size=1))

    before = found(files[0])
    assert compare_datasets(before, found(*files), "same") == compare_datasets({}, before, "same") == []
    (tmp_path / "moved.jsonl").write_text("{}\n{}\n")
    assert compare_datasets(before, found(str(tmp_path / "moved.jsonl")), "same") == []
    with pytest.raises(ConfigError, match="the training samples of 'a' are not those"):
        compare_datasets(before, found(files[1]), "same")
    (tmp_path / "a.jsonl").write_text("{}\n[]\n")
    with pytest.raises(ConfigError, match=r"the training samples of 'a' are not those .* --resume changed"):
        compare_datasets(before, found(*files), "same")
    assert compare_datasets(before, found(*files), "changed") == ["changed since the run was started: the files of 'a'"]


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        (
            {"model": {"vision": {"init_args": {"w": 1}}}}, {"model": {"vision": {"init_args": {"w": 1, "k": 0}}}},
            "k: None -> 0",
        ),
        (
            {"optimizer": {"learning_rate_scale": {}}}, {"optimizer": {"learning_rate_scale": {"llm": 0.1}}},
            "llm: None -> 0.1",
        ),
        (
            {"data": {"train": [{"path": "a", "schema": {"class_path": "m.f"}}]}},
            {"data": {"train": [{"path": "a", "schema": {"class_path": "m.g"}}]}},
            "schema of 'a'",
        ),
    ],
    ids=("arguments of a module", "a factor of a module", "a schema"),
)  # fmt: skip
def test_settings_that_users_name_need_a_word_too(folder, then, now, named):
    (folder.path / SETTINGS_FILE).write_text(yaml.safe_dump(then))
    with pytest.raises(ConfigError, match=named):
        start_or_resume(folder, yaml.safe_dump(now), "same", overwrite=False)
