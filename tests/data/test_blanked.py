"""Held-out questions in groups, and with the media of a modality blanked."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from hetjax.data import DataConfig, eval_batches, write_shapes
from hetjax.data.chat import ProcessorConfig
from hetjax.errors import DataError
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.patch_rows import PatchRows
from tests.harness.sample_loaders import make_loader


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = write_shapes(tmp_path_factory.mktemp("made") / "shapes", samples=36)
    rows = dict(patch_size=4, merge=2, prefix_tokens=3)
    vision = SimpleNamespace(tubelet=2, image_rows=PatchRows(**rows), video_rows=PatchRows(**rows, frames=2))
    resolution = DynamicResolution(patch_size=4, merge=2, min_patches=4, max_patches=16, video_patches=16)
    settings = ProcessorConfig(image_rows=20, video_rows=40, clips=1, clip_seconds=0.3, resolution=resolution)
    paths = dict(train=str(folder / "train.jsonl"), eval=str(folder / "heldout.jsonl"))
    config = DataConfig(**paths, seq_len=240, batch_size=4, processor=settings)
    return make_loader(config, encoders={"vision": vision, "audio": object()})


@pytest.mark.parametrize(
    ("blank", "emptied"),
    [
        (("image",), {("vision", "patches")}),
        (("audio",), {("audio", "waveforms")}),
        (("image", "video"), {("vision", "patches"), ("vision", "video_patches")}),
    ],
)
def test_blanked_media_have_no_content_and_everything_else_stays(shapes, blank, emptied):
    given = next(eval_batches(shapes, 6))
    blanked = next(eval_batches(shapes, 6, blank=blank))
    assert blanked.expected == given.expected
    np.testing.assert_array_equal(blanked.lengths, given.lengths)
    for module, inputs in given.arrays.items():
        for port, array in inputs.items():
            if (module, port) in emptied:
                assert np.any(array) and not np.any(blanked.arrays[module][port]), port
            else:
                np.testing.assert_array_equal(blanked.arrays[module][port], array, err_msg=port)


def test_images_of_one_size_are_blanked_too(make_dataset, make_config):
    path = make_dataset(4)
    loader = make_loader(make_config(path, eval=str(path)))
    given, blanked = next(eval_batches(loader, 4)), next(eval_batches(loader, 4, blank=("image",)))
    assert np.any(given.arrays["vision"]["images"]) and not np.any(blanked.arrays["vision"]["images"])
    for port, array in given.arrays["llm"].items():
        np.testing.assert_array_equal(blanked.arrays["llm"][port], array)


def with_tasks(path, tasks):
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    samples = [
        sample if task is None else {"task": task, **sample} for sample, task in zip(samples, tasks, strict=True)
    ]
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def test_a_sample_is_in_the_group_that_its_key_names(make_dataset, make_config):
    path = make_dataset(5)
    with_tasks(path, ["count", "read", 3, "read", "count"])
    found = list(eval_batches(make_loader(make_config(path, eval=str(path))), 4, by="task"))
    assert [batch.groups for batch in found] == [("count", "read", "3", "read"), ("count",)]
    assert all(batch.groups == () for batch in eval_batches(make_loader(make_config(path, eval=str(path))), 4))


def test_a_sample_without_a_group_is_bad_and_counts_under_the_limit(make_dataset, make_config):
    path = make_dataset(4)
    with_tasks(path, ["count", None, ["read"], "read"])
    found = list(eval_batches(make_loader(make_config(path, eval=str(path))), 4, by="task"))
    assert [batch.groups for batch in found] == [("count", "read")]
    assert [reason.partition(", by")[0] for reason in found[0].bad] == [
        f"{path}:2: the sample has no key 'task'",
        f"{path}:3: the sample has neither a text nor a number under the key 'task'",
    ]
    with pytest.raises(DataError, match=r"max_bad_share 0\.2"):
        list(eval_batches(make_loader(make_config(path, eval=str(path), max_bad_share=0.2)), 4, by="task"))


def test_groups_are_found_beside_columns_that_the_settings_name(tmp_path, make_config):
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"chat": chat, "language": each}) + "\n" for each in ("de", "fr")))
    source = {"path": str(path), "columns": {"messages": "chat"}}
    loader = make_loader(make_config(path, eval=source))
    assert next(eval_batches(loader, 2, by="language")).groups == ("de", "fr")
