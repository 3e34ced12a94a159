"""Mamba-2 layers out of Nemotron-H's checkpoints and back: byte for byte, and each number in its place."""

import numpy as np
import pytest

from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.mamba import mamba_entries
from hetjax.models.parts.mamba import MambaConfig
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.mamba_layer import CONFIG, WIDTH, build

PREFIX = "backbone.layers.3.mixer."
INNER, VECTORS = CONFIG.heads * CONFIG.head_dim, CONFIG.groups * CONFIG.state
CHANNELS = INNER + 2 * VECTORS
SHAPES = {
    "in_proj.weight": (INNER + CHANNELS + CONFIG.heads, WIDTH),
    "conv1d.weight": (CHANNELS, 1, CONFIG.conv_kernel),
    "conv1d.bias": (CHANNELS,),
    "A_log": (CONFIG.heads,),
    "D": (CONFIG.heads,),
    "dt_bias": (CONFIG.heads,),
    "norm.weight": (INNER,),
    "out_proj.weight": (WIDTH, INNER),
}


def tensors(dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {PREFIX + name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


def entries(index: tuple[int, ...] = (), path: str = "mixer", config: MambaConfig = CONFIG):
    return mamba_entries(PREFIX, path, index, config, WIDTH)


def stacked(count: int | None = None):
    """Shapes of our arrays, those of a stack with a leading dim."""
    lead = () if count is None else (count,)
    return {
        f"mixer/{path}": np.empty((*lead, *array.shape))
        for path, array in arrays_by_path(build(dtype=np.float32)).items()
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_there_and_back_is_the_same_byte_for_byte(dtype):
    given = tensors(dtype)
    arrays = read_arrays(entries((1,)), given, stacked(2))
    assert {path: array.shape for path, array in arrays.items()} == {
        path: array.shape for path, array in stacked(2).items()
    }
    back = write_tensors(entries((1,)), arrays)
    assert list(back) == list(given)
    for name, array in given.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape), name
        assert back[name].tobytes() == array.tobytes(), name


def test_every_array_is_read_and_the_joined_ones_are_cut_in_their_order():
    given = tensors()
    arrays = read_arrays(entries(), given, stacked())
    assert arrays.keys() == stacked().keys()
    x = np.random.default_rng(1).normal(size=WIDTH).astype(np.float32)
    projected = given[f"{PREFIX}in_proj.weight"] @ x
    ours = [np.tensordot(x, arrays[f"mixer/{name}/kernel"], 1).ravel() for name in ("z", "x", "b", "c", "dt")]
    np.testing.assert_allclose(np.concatenate(ours), projected, rtol=1e-5)
    bias = np.concatenate([arrays[f"mixer/conv_{name}/bias"].ravel() for name in "xbc"])
    np.testing.assert_array_equal(bias, given[f"{PREFIX}conv1d.bias"])
    # The last tap is the row's own, in both.
    last = np.concatenate([arrays[f"mixer/conv_{name}/kernel"][-1].ravel() for name in "xbc"])
    np.testing.assert_array_equal(last, given[f"{PREFIX}conv1d.weight"][:, 0, -1])
    np.testing.assert_array_equal(arrays["mixer/norm/scale"].ravel(), given[f"{PREFIX}norm.weight"])
    np.testing.assert_array_equal(arrays["mixer/out/kernel"].reshape(INNER, WIDTH), given[f"{PREFIX}out_proj.weight"].T)
