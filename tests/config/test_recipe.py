"""The recipe's stages as settings: they load, train what they say, and fit their placements at full size."""

from pathlib import Path

import pytest

from hetjax.config.build import batch_shapes, build_graph
from hetjax.config.run_config import load_config
from hetjax.stages.flat_state import flatten_module
from hetjax.stages.frozen import frozen_paths
from tests.harness.paths import ROOT

STAGES = sorted((ROOT / "configs" / "nemotron_omni").glob("*.yaml"))
TRAINED = {
    "s0_vision_projector": {"vision": {"projector"}},
    "s1_vision": {"vision": "all", "llm": "all"},
    "s2_audio_projector": {"audio": {"projector"}},
    "s3_audio": {"audio": "all"},
    "s4_omni": {"vision": "all", "audio": "all", "llm": "all"},
    "s5_omni_49k": {"vision": "all", "audio": "all", "llm": "all"},
    "s6_omni_262k": {"vision": "all", "audio": {"projector"}, "llm": "all"},
}


def load(path: Path):
    return load_config(["--config", str(path)])[0]


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_a_stage_trains_the_parts_that_the_recipe_names(path):
    config = load(path)
    graph = build_graph(config.model)
    frozen = frozen_paths(graph, config.optimizer.frozen, config.optimizer.trained)
    found = {}
    for module, still in frozen.items():
        paths = set(flatten_module(graph.abstract(module))[1])
        moving = {each.partition("/")[0] for each in paths - still}
        if moving:
            found[module] = "all" if not still else moving
    assert found == TRAINED[path.stem]


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_a_microbatch_divides_over_the_devices_of_every_module(path):
    config = load(path)
    for layout in config.placement.values():
        assert config.data.batch_size % (config.microbatches * layout.batch_degree) == 0
        devices = 64 if layout.devices == "0-63" else 256
        assert layout.device_count == devices
    rows = batch_shapes(config.data, config.model)["llm"]["tokens"].shape
    assert rows[0] == config.data.batch_size and rows[1] >= config.data.seq_len
    assert rows[1] % (2 * config.placement["llm"].context) == 0


def test_weights_of_a_stage_come_from_the_stages_before_it():
    names = [path.stem for path in STAGES]
    for place, path in enumerate(STAGES):
        source = load(path).warm_start
        folders = [source] if isinstance(source, str) else list(source.values())
        earlier = {f"runs/{name}" for name in names[:place]}
        assert all(folder in earlier or folder.startswith("checkpoints/") for folder in folders), path.stem
