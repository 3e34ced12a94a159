import numpy as np

from hetjax.config.build import assumed_packings, batch_shapes
from hetjax.config.run_config import load_config
from hetjax.tools.random_batch import random_batch
from tests.harness.paths import ROOT


def test_a_random_batch_has_the_shapes_and_dtypes_asked_for_and_ids_of_the_vocabulary(make_config):
    config = make_config()
    shapes = batch_shapes(config.data, config.model)
    batch = random_batch(shapes, vocab_size=40)
    for module, inputs in shapes.items():
        assert batch[module].keys() == inputs.keys()
        for port, aval in inputs.items():
            assert (batch[module][port].shape, batch[module][port].dtype) == (aval.shape, aval.dtype)
    for port in ("tokens", "labels"):
        assert set(np.unique(batch["llm"][port])) <= set(range(40))
        assert len(np.unique(batch["llm"][port])) > 20


def test_image_tokens_of_a_sample_take_rows_of_their_own(make_config):
    config = make_config()
    positions = random_batch(batch_shapes(config.data, config.model), vocab_size=40)["llm"]["image_positions"]
    for row in positions:
        assert len(set(row)) == len(row)


def test_a_run_with_a_processor_gets_media_that_there_could_be_as_large_as_its_settings_allow():
    config, _ = load_config(["--config", str(ROOT / "configs/omni_tiny.yaml"), "--microbatches", "1"])
    shapes, packings = batch_shapes(config.data, config.model), assumed_packings(config.data, config.model)
    batch = random_batch(shapes, vocab_size=288, packings=packings)
    resolution, prefix = config.data.processor.resolution, config.model.components["vision"].prefix_rows
    rows = batch["vision"]["segments"].shape[1]
    (images, _) = packings["vision"]
    assert images == (rows, min(rows, prefix + resolution.max_patches))
    assert np.bincount(batch["vision"]["segments"][0]).max() == images.longest
    for module, inputs in shapes.items():
        for port, aval in inputs.items():
            assert (batch[module][port].shape, batch[module][port].dtype) == (aval.shape, aval.dtype)
    images, sound = (set(batch["llm"][f"{kind}_positions"][0]) for kind in ("image", "audio"))
    assert not images & sound
    height, width = batch["vision"]["places"][0, 0, 2:]
    assert np.all(batch["vision"]["places"][..., 0] < height) and np.all(batch["vision"]["places"][..., 1] < width)
    assert np.all(batch["audio"]["lengths"] == batch["audio"]["waveforms"].shape[-1])
