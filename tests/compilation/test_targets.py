"""Targets by their names, and the texts that describe their devices; nothing is compiled here."""

import jax
import pytest

import hetjax
from hetjax.compilation import targets
from hetjax.compilation.gpu_text import GPUS, gpu_text
from hetjax.compilation.targets import parse_target
from hetjax.errors import ConfigError
from hetjax.meshes import find_hardware, is_described, local_devices


@pytest.mark.parametrize(
    ("name", "kind", "devices", "per_host", "topology"),
    [
        ("h100x256", "H100", 256, 8, "1x32x8"),
        ("H200x8", "H200", 8, 8, "1x1x8"),
        ("a100x4", "A100", 4, 4, "1x1x4"),
        ("b200x1", "B200", 1, 1, "1x1x1"),
        ("h100:32x4", "H100", 128, 4, "1x32x4"),
        ("v5p:4x4x4", "TPU v5", 64, 64, "v5p:4x4x4"),
        ("v5e:4x4", "TPU v5 lite", 16, 16, "v5e:4x4"),
    ],
)
def test_a_name_says_how_many_devices_of_which_kind_lie_in_which_hosts(name, kind, devices, per_host, topology):
    target = parse_target(name)
    found = (target.hardware.name, target.devices, target.devices_per_host, target.topology)
    assert found == (kind, devices, per_host, topology)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h300x8", ["h300x8", "a100, h100, h200, b200"]),
        ("h100", ["h100", "h100x256"]),
        ("h100x12", ["12 GPUs", "hosts of 8", "h100:2x4"]),
        ("h100x0", ["no device"]),
        ("h100:2x2x2", ["h100:2x2x2", "hosts"]),
        ("v5px64", ["v5px64", "v5p:4x4x4"]),
    ],
)
def test_a_name_that_says_nothing_is_refused_with_one_that_does(name, words):
    with pytest.raises(ConfigError) as error:
        parse_target(name)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("kind", ["A100", "H100", "H200", "B200"])
def test_the_text_of_a_gpu_has_the_memory_and_bandwidth_of_the_cost_models(kind):
    hardware = find_hardware(kind)
    text = gpu_text(hardware)
    assert f"device_memory_size: {int(hardware.memory_bytes)}" in text
    assert f"memory_bandwidth: {int(hardware.memory_bandwidth)}" in text
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("kind", ["A100", "H100", "B200"])
def test_the_tensor_cores_of_a_text_give_the_throughput_of_the_data_sheet(kind):
    gpu = GPUS[kind]
    flops = 2 * gpu.cores * 4 * gpu.bfloat16 * gpu.tensor_clock * 1e9
    assert flops == pytest.approx(find_hardware(kind).bfloat16_flops, rel=0.02)


@pytest.mark.parametrize(
    ("name", "words"), [("h100x8", ["jax_cuda13_plugin", "[targets]"]), ("v5p:2x2x1", ["pip install libtpu"])]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(name, words, monkeypatch):
    targets._devices.cache_clear()
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        hetjax.target_devices(name)
    assert all(word in str(error.value) for word in words)


def test_this_process_runs_its_own_devices_and_all_that_are_only_described():
    class Described:
        platform, process_index = "gpu", 3

    class OfAnotherProcess:
        platform, process_index = "cpu", 3

    own, described = jax.devices()[:2], Described()
    assert is_described(described) and not any(map(is_described, own))
    assert local_devices([*own, described]) == [*own, described]
    real = jax.devices
    other = OfAnotherProcess()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda platform=None: [*real(platform), other])
        assert local_devices([own[0], other]) == [own[0]]
