"""The shapes in the signatures are the shapes that the functions take and return."""

import jax
import jax.numpy as jnp
import pytest
from beartype import beartype
from flax import nnx
from jaxtyping import TypeCheckError, jaxtyped

from hetjax.models import (
    ClipEncoder,
    LanguageModel,
    MoEConfig,
    ParakeetEncoder,
    RadioEncoder,
    Siglip2Encoder,
    VisionEncoder,
)
from hetjax.models.kernels.attention import attend
from hetjax.models.kernels.grouped_experts import ExpertKernels, ExpertSlots, grouped_experts
from hetjax.models.kernels.grouped_products import GroupedProducts
from hetjax.models.parallel.expert_parallel import expert_parallel
from hetjax.models.parts.conformer.attention import attend_relatively, shift_distances
from hetjax.models.parts.loss import cross_entropy
from hetjax.models.parts.mel import log_mel
from hetjax.models.parts.moe import MoE
from hetjax.models.parts.rope import rope_table, rotate
from hetjax.models.parts.router import Router, within_capacity
from hetjax.models.parts.scatter import scatter_tokens
from tests.harness.models import clip_cases, radio_cases, siglip2_cases
from tests.harness.models.generate import generate
from tests.harness.models.tiny_models import build_decoder, build_vision, decoder_batch, image_batch
from tests.harness.models.tiny_parakeet import build_parakeet


def checked(function, *args, **kwargs):
    """The function's shapes, with its annotations enforced; those behind `jax.checkpoint` are on what it wraps."""
    function = getattr(function, "__wrapped__", function)
    return jax.eval_shape(lambda: jaxtyped(function, typechecker=beartype)(*args, **kwargs))


def ones(*shape):
    return jnp.ones(shape)


def test_shapes_that_the_signatures_state_are_taken():
    rows = jnp.zeros((2, 3), int)
    checked(scatter_tokens, ones(2, 5, 4), ones(2, 3, 4), rows)
    checked(cross_entropy, ones(2, 3, 9), ones(11, 9), rows, ones(2, 3), vocab_dim=0)
    checked(attend, ones(2, 3, 4, 6), ones(2, 7, 2, 6), ones(2, 7, 2, 6), rows)
    checked(rotate, ones(2, 3, 4, 6), checked_table(rows))
    config = MoEConfig(count=4, top_k=2, scores="sigmoid", balance_loss=0.1)
    checked(MoE.__call__, MoE(6, 8, config, rngs=nnx.Rngs(0)), ones(2, 3, 6))
    checked(Router.__call__, Router(6, 4, 2, rngs=nnx.Rngs(0)), ones(2, 3, 6))
    checked(within_capacity, jnp.zeros((2, 3, 2), int), 4, 2, None)
    kernels = ExpertKernels((ones(4, 6, 8), ones(4, 6, 8)), ones(4, 8, 6))
    slots = jnp.zeros((2, 3, 2), int), ones(2, 3, 2)
    checked(expert_parallel, ones(2, 3, 6), *slots, kernels, "swiglu")
    products = GroupedProducts(method="blocks", count=4, rows=6)
    checked(grouped_experts, products, kernels, ones(3, 6), ExpertSlots(slots[0][0], slots[1][0]), "swiglu")
    checked(generate, build_decoder(), rows, jnp.ones(2, int), max_new_tokens=2, stop_token=0)
    batch = {key: jnp.asarray(value) for key, value in decoder_batch().items()}
    checked(LanguageModel.__call__, build_decoder(), **batch)
    checked(VisionEncoder.__call__, build_vision(), jnp.asarray(image_batch()))


def test_shapes_of_audio_that_the_signatures_state_are_taken():
    lengths, valid = jnp.full((2, 3), 1600), jnp.ones((2, 3, 5), bool)
    checked(log_mel, ones(2, 3, 1600), lengths, 16)
    by_head, biases = ones(2, 3, 5, 4, 6), ones(4, 6)
    checked(attend_relatively, by_head, by_head, by_head, ones(9, 4, 6), biases, biases, valid)
    checked(shift_distances, ones(2, 5, 9))
    audio = {"waveforms": ones(2, 3, 1600), "lengths": lengths}
    checked(ParakeetEncoder.__call__, build_parakeet(), **audio)
    checked(ParakeetEncoder.encode, build_parakeet(), ones(2, 3, 10, 16), lengths // 160)


def test_shapes_of_packed_images_are_taken():
    pictures = radio_cases.images()[:2]
    for kind, model in (
        (RadioEncoder, radio_cases.build()),
        (Siglip2Encoder, siglip2_cases.build(siglip2_cases.PACKED)),
    ):
        inputs, _ = radio_cases.image_inputs(model.config, [pictures], rows=64)
        checked(kind.__call__, model, **jax.tree.map(jnp.asarray, inputs))
    clips, _ = radio_cases.video_inputs(radio_cases.TINY, [[radio_cases.video(4)]], rows=80)
    checked(RadioEncoder.__call__, radio_cases.build(), **jax.tree.map(jnp.asarray, clips))
    checked(
        Siglip2Encoder.__call__, siglip2_cases.build(siglip2_cases.FIXED), jnp.asarray(siglip2_cases.fixed_images())
    )
    checked(ClipEncoder.__call__, clip_cases.build(), jnp.asarray(clip_cases.images()))


def checked_table(rows):
    return jaxtyped(rope_table, typechecker=beartype)(rows, 6, 100.0)


def tied_loss(*args):
    return jaxtyped(cross_entropy, typechecker=beartype)(*args, vocab_dim=0)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (scatter_tokens, [(2, 5, 4), (2, 3, 5), (2, 3)]),
        (tied_loss, [(2, 3, 9), (11, 9), (2, 4), (2, 3)]),
        (attend, [(2, 3, 4, 6), (2, 7, 2, 6), (2, 8, 2, 6), (2, 3)]),
    ],
)
def test_other_shapes_are_refused(function, args):
    integers = 3 if function is attend else 2
    arrays = [jnp.zeros(shape, int if i == integers else jnp.float32) for i, shape in enumerate(args)]
    with pytest.raises(TypeCheckError):
        checked(function, *arrays)
