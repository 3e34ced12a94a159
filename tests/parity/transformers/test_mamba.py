"""A Mamba-2 layer against that of Nemotron-H in transformers, as torch computes it without kernels of its own.

In float32 alone: theirs casts the rows of the recurrence, A, and the gated norm to float32, whatever the weights are.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.mamba import mamba_entries
from hetjax.models.parts.mamba import Mamba2, MambaCache, MambaConfig
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.arrays import with_arrays
from tests.harness.models.mamba_layer import build

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.live

# Theirs clamps steps to 1e-3 where it computes by chunks; random biases of steps put some below.
CONFIG = MambaConfig(heads=4, head_dim=3, groups=2, state=5, chunk=4, min_dt=1e-3)
CONFIGS = {
    "small": CONFIG,
    "one group": dataclasses.replace(CONFIG, groups=1, head_dim=5, chunk=8),
    "a group a head, another norm": dataclasses.replace(CONFIG, groups=4, state=7, norm_epsilon=1e-2),
}


def theirs(config: MambaConfig, width: int):
    """Their layer, all its weights drawn at random."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.nemotron_h.configuration_nemotron_h import NemotronHConfig
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

    hf = NemotronHConfig(
        vocab_size=16, hidden_size=width, layers_block_type=["linear_attention"], mamba_num_heads=config.heads,
        mamba_head_dim=config.head_dim, n_groups=config.groups, ssm_state_size=config.state,
        conv_kernel=config.conv_kernel, chunk_size=config.chunk, layer_norm_epsilon=config.norm_epsilon,
        time_step_min=config.min_dt,
    )  # fmt: skip
    layer = NemotronHMamba2Mixer(hf, layer_idx=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (2.0 if name == "dt_bias" else 0.7))
            if name == "dt_bias":
                weight.sub_(3)
    return layer


def ours(config: MambaConfig, width: int, layer) -> Mamba2:
    tensors = {name: weight.detach().numpy() for name, weight in layer.named_parameters()}
    shapes = {f"m/{path}": array for path, array in arrays_by_path(build(config, np.float32)).items()}
    entries = mamba_entries("", "m", (), config, width)
    arrays = read_arrays(entries, tensors, shapes)
    return with_arrays(build(config, np.float32), {path[2:]: jnp.asarray(array) for path, array in arrays.items()})


def error(got, want) -> float:
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("length", [1, 7, 16, 21])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_outputs_and_all_gradients_equal_theirs(config, length):
    import torch

    layer = theirs(config, 8)
    layer.train()
    rng = np.random.default_rng(length)
    x, weight = rng.normal(size=(2, 2, length, 8)).astype(np.float32)
    given = torch.tensor(x, requires_grad=True)
    want = layer(given)
    (want * torch.tensor(weight)).sum().backward()
    model = ours(config, 8, layer)

    def run(arrays, x):
        return with_arrays(model, arrays)(x)[0]

    @jax.jit
    def with_gradients(arrays, x, weight):
        y, vjp = jax.vjp(run, arrays, x)
        return y, vjp(weight)

    got, (of_arrays, of_x) = with_gradients(arrays_by_path(model), jnp.asarray(x), jnp.asarray(weight))
    assert error(got, want.detach()) < 2e-5
    gradients = write_tensors(
        mamba_entries("", "m", (), config, 8), {f"m/{path}": array for path, array in of_arrays.items()}
    )
    assert error(of_x, given.grad) < 1e-4
    assert gradients.keys() == {name for name, _ in layer.named_parameters()}
    for name, parameter in layer.named_parameters():
        # With one row, nothing of the past is read: gradients of A are 0 in both.
        if parameter.grad.abs().max() > 0 or np.abs(gradients[name]).max() > 0:
            assert error(gradients[name], parameter.grad) < 1e-4, name


def test_prefill_and_steps_equal_theirs_from_a_cache():
    """Their steps clamp nothing: without a least step in theirs both paths are ours."""
    import torch
    from transformers.cache_utils import DynamicCache

    config = dataclasses.replace(CONFIG, min_dt=0.0)
    layer = theirs(config, 8).eval()
    model = ours(config, 8, layer)
    x = np.random.default_rng(0).normal(size=(2, 12, 8)).astype(np.float32)
    cache, their_cache = MambaCache.empty(config, 2, jnp.float32), DynamicCache(config=layer.config)
    for start, end in ((0, 7), *((row, row + 1) for row in range(7, 12))):
        with torch.no_grad():
            want = layer(torch.tensor(x[:, start:end]), cache_params=their_cache)
        got, cache = model(jnp.asarray(x[:, start:end]), cache=cache)
        assert error(got, want) < 2e-5, start
