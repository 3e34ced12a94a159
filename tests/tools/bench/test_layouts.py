import pytest

from hetjax.errors import ConfigError
from hetjax.tools.bench.layouts import layouts


@pytest.mark.slow
@pytest.mark.quick
def test_both_placements_are_timed_and_a_layout_of_its_own_spares_the_encoder_its_traffic():
    outcome = layouts(seq_len=128, images=1, samples=8, steps=1, warmup=1)
    numbers = outcome.numbers
    assert numbers["homogeneous"]["seconds"] > 0 and numbers["colocated"]["seconds"] > 0
    homogeneous, colocated = (numbers[name]["bytes_by_module"] for name in ("homogeneous", "colocated"))
    assert homogeneous["llm"] == colocated["llm"] > 0
    # All that the encoder sends by itself is the sum of its gradients, once.
    assert 0 < colocated["vision"] < homogeneous["vision"]
    assert numbers["bytes_ratio"] > 1
    assert numbers["bytes_ratio"] == pytest.approx(numbers["homogeneous"]["bytes"] / numbers["colocated"]["bytes"])


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="2 images of 64 tokens do not fit into 100 token positions"):
        layouts(seq_len=100, images=2)
