import pytest

from meshes import find_hardware
from meshes.hardware import HARDWARE


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
