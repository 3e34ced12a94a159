import pytest

from hetjax.meshes import find_hardware
from hetjax.meshes.hardware import HARDWARE


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA B200", "B200"),
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5", "TPU v5"),
    ],
)
def test_a_device_kind_finds_its_figures(device_kind, name):
    assert find_hardware(device_kind).name == name


@pytest.mark.parametrize("device_kind", ["cpu", "NVIDIA GeForce RTX 4090", "NVIDIA GH200 480GB", ""])
def test_an_unknown_device_has_no_figures(device_kind):
    assert find_hardware(device_kind) is None


def test_each_known_kind_finds_itself():
    """No entry may hide behind an earlier one whose name it contains."""
    assert [find_hardware(entry.name) for entry in HARDWARE] == list(HARDWARE)


def test_units_are_flops_and_bytes():
    """From the NVIDIA H100 SXM data sheet: 989 TFLOP/s dense bfloat16, 80 GB, 3.35 TB/s."""
    h100 = find_hardware("H100")
    assert h100.bfloat16_flops == 989 * 10**12
    assert h100.memory_bytes == 80 * 10**9
    assert h100.memory_bandwidth == pytest.approx(3.35e12)


@pytest.mark.parametrize(
    ("name", "link_both_ways", "network_bits"),
    [
        ("A100", 600e9, 200e9),
        ("H100", 900e9, 400e9),
        ("H200", 900e9, 400e9),
        ("B200", 1800e9, 400e9),
        ("TPU v5 lite", 400e9, 6.4e12 / 256),
        ("TPU v5", 1200e9, 50e9),
    ],
)
def test_links_are_bytes_a_second_in_one_direction(name, link_both_ways, network_bits):
    """Data sheets give bytes both ways inside a host, and bits one way on the network."""
    hardware = find_hardware(name)
    assert 2 * hardware.link_bandwidth == link_both_ways
    assert 8 * hardware.network_bandwidth == network_bits


def test_every_gpu_host_has_eight_devices_and_the_network_is_its_slower_way():
    assert [entry.devices_per_host for entry in HARDWARE if "TPU" not in entry.name] == [8] * 4
    for entry in HARDWARE:
        assert entry.network_bandwidth < entry.link_bandwidth < entry.memory_bandwidth
        assert 0 < entry.link_latency < entry.network_latency
