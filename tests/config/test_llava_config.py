"""The two stages of LLaVA as settings: they load, train what they say, and fit their placements."""

import pytest

from hetjax.config.build import batch_shapes, build_graph
from hetjax.config.run_config import load_config
from hetjax.stages.flat_state import flatten_module
from hetjax.stages.frozen import frozen_paths
from tests.harness.paths import ROOT

TRAINED = {"llava": {"vision": {"projector"}}, "llava_2_llm": {"vision": {"projector"}, "llm": "all"}}


@pytest.mark.parametrize("name", TRAINED)
def test_a_stage_trains_the_parts_of_its_recipe_on_its_devices(name):
    config = load_config(["--config", str(ROOT / "configs" / f"{name}.yaml")])[0]
    graph, found = build_graph(config.model), {}
    for module, still in frozen_paths(graph, config.optimizer.frozen, config.optimizer.trained).items():
        moving = {path.partition("/")[0] for path in set(flatten_module(graph.abstract(module))[1]) - still}
        if moving:
            found[module] = "all" if not still else moving
    assert found == TRAINED[name]
    for layout in config.placement.values():
        assert layout.device_count == 8 and config.data.batch_size % (config.microbatches * layout.batch_degree) == 0
    assert batch_shapes(config.data, config.model)["vision"]["images"].shape[1:] == (1, 336, 336, 3)


def test_the_second_stage_starts_from_the_first():
    assert load_config(["--config", str(ROOT / "configs" / "llava_2_llm.yaml")])[0].warm_start == "runs/llava"
