import jax
import pytest

from hetjax.errors import ConfigError
from hetjax.tools.bench.step import share_of_peak, step


def test_bench_step_relates_tokens_and_flops_to_the_median_step(make_config):
    outcome = step(config=make_config(), timed_steps=3, warmup=1)
    numbers = outcome.numbers
    assert numbers["steps"] == 3
    assert numbers["devices"] == 4
    assert 0 < numbers["seconds_min"] <= numbers["seconds"]
    assert numbers["tokens"] == 8 * 12
    assert numbers["tokens_per_second"] == pytest.approx(96 / numbers["seconds"])
    assert numbers["tflops_per_device"] * 1e12 == pytest.approx(numbers["model_flops"] / numbers["seconds"] / 4)
    # Without rematerialization the programs multiply what the model asks for, and little more.
    assert 0.9 < numbers["compiled_flops"] / numbers["model_flops"] < 1.2
    assert set(numbers["seconds_by_module"]) == {"vision", "llm", "boundaries"}
    assert numbers["share_of_peak"] is None
    assert (numbers["peak_bytes_per_device"] is None) == (jax.devices()[0].memory_stats() is None)
    assert "unknown" in [row[1] for row in outcome.shown[0].rows]


def test_the_share_of_the_peak_is_of_the_device_by_its_name():
    assert share_of_peak(989e12 / 4, "NVIDIA H200") == pytest.approx(0.25)
    assert share_of_peak(1e12, "cpu") is None


def test_no_steps_to_time_are_refused(make_config):
    with pytest.raises(ConfigError, match="timed_steps is 0 and warmup 3"):
        step(config=make_config(), timed_steps=0)
