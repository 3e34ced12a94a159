"""The names of parts in compiled programs: what a profile and a compiled text are read by."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from hetjax.models import LanguageModel, NemotronH, ParakeetEncoder, RadioEncoder
from hetjax.models.scopes import SCOPES, scope
from tests.harness.models import radio_cases, tiny_parakeet
from tests.harness.models.tiny_hybrid import HYBRID, hybrid_batch
from tests.harness.models.tiny_models import DECODER, decoder_batch

PRUNING = dataclasses.replace(radio_cases.TINY, video_pruning_rate=0.5)
LAYER = {"layer", "norm", "attention", "mlp"}
CASES = {
    "decoder": (LanguageModel, DECODER, {*LAYER, "causal", "rope", "embedding", "head", "loss"}),
    "hybrid": (NemotronH, HYBRID, {*LAYER, "causal", "mamba", "experts", "router", "embedding", "head", "loss"}),
    "radio": (RadioEncoder, PRUNING, {*LAYER, "packed", "patch_embedding", "projector", "video_pruning"}),
    "parakeet": (
        ParakeetEncoder,
        tiny_parakeet.TINY,
        {*LAYER, "log_mel", "subsampling", "convolution", "projector"},
    ),
}


def inputs(name):
    if name == "radio":
        return (
            radio_cases.video_inputs(PRUNING, [[radio_cases.video(4)]], rows=80)[0]
            | radio_cases.image_inputs(PRUNING, [radio_cases.images()[:1]], rows=64)[0]
        )
    return {
        "decoder": decoder_batch,
        "hybrid": lambda: hybrid_batch(2, 16),
        "parakeet": lambda: tiny_parakeet.sounds([[1600]], 1600),
    }[name]()


def op_names(kind, config, batch) -> list[str]:
    """The scopes of every operation of a forward and a backward, as "jit(...)/outer/inner/operation"."""
    definition, params, rest = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))), nnx.Param, ...)

    def objective(params, rest, batch):
        outputs = nnx.merge(definition, params, rest, copy=True)(**batch)
        floats = [out for out in outputs.values() if jnp.issubdtype(out.dtype, jnp.floating)]
        return sum(out.sum() for out in floats)

    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, jnp.asarray(array).dtype), batch)
    text = jax.jit(jax.grad(objective)).lower(params, rest, shapes).as_text(debug_info=True)
    return re.findall(r'loc\("([^"]*)"', text)


@pytest.mark.parametrize("name", CASES)
def test_operations_of_both_passes_name_the_parts_that_they_are_of(name):
    kind, config, expected = CASES[name]
    names = op_names(kind, config, inputs(name))
    scopes = [set(re.findall(r"\w+", each)) for each in names]
    assert {part for each in scopes for part in each if part in SCOPES} >= expected
    backward = [each for each in scopes if "transpose" in each]
    assert {part for each in backward for part in each if part in SCOPES} >= {"layer", "attention", "mlp", "norm"}
    assert any({"layer", "attention"} <= each for each in scopes)
    assert not any({"attention", "mlp"} <= each for each in scopes)


def test_the_vocabulary_has_no_name_without_a_part():
    assert set().union(*(expected for _, _, expected in CASES.values())) == set(SCOPES)


def test_a_name_outside_of_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="no scope 'atention'; the scopes are embedding"):
        scope("atention")
