"""An encoder and a language model of random weights, prompts for them, and trainers of them on several placements."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hetjax
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel, VisionConfig, VisionEncoder

# B prompts, which no batch degree below divides · S longest prompt · R new tokens
B, S, R = 5, 12, 6
VISION = VisionConfig(
    image_size=8, patch_size=4, width=16, layers=2, heads=2, mlp_width=32, projector_width=32, output_width=24
)
DECODER = DecoderConfig(vocab_size=40, width=24, layers=5, heads=4, kv_heads=2, head_dim=6, mlp_width=48)


def filled(build):
    """A module with random weights, made on the host: initializers take seconds to compile."""
    rng = np.random.default_rng(3)
    with nnx.use_eager_sharding(False):
        definition, shapes = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * (leaf.shape or (1,))[0] ** -0.25, jnp.float32)  # noqa: E731
    return nnx.merge(definition, jax.tree.map(draw, shapes))


MODULES = {
    "vision": filled(functools.partial(VisionEncoder, VISION)),
    "llm": filled(functools.partial(LanguageModel, DECODER)),
}
GRAPH = hetjax.ModuleGraph(MODULES, [hetjax.Edge("vision.tokens", "llm.image_tokens")])
PLACEMENTS = {
    "disjoint": {
        "vision": Layout(devices="0-3", data=4),
        "llm": Layout(devices="4-7", data=2, tensor=2),
    },
    "colocated, two chunks on each of two meshes": {
        "vision": Layout(data=8),
        "llm": Layout(data=2, tensor=2, stage=2, chunks=2, layers=[1, 2, 1, 1]),
    },
    "homogeneous": {"vision": Layout(data=4, tensor=2), "llm": Layout(data=4, tensor=2)},
    "overlapping, context": {
        "vision": Layout(devices="0-3", data=2, tensor=2),
        "llm": Layout(devices="2-5", fsdp=2, context=2),
    },
    "one device each": {"vision": Layout(devices="0"), "llm": Layout(devices="1")},
}
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(B, 1, 8, 8, 3)).astype(np.float32)
TOKENS = RNG.integers(0, DECODER.vocab_size, (B, S)).astype(np.int32)
POSITIONS = np.tile(np.arange(1, 1 + VISION.tokens_per_image, dtype=np.int32), (B, 1))
POSITIONS[0] = S  # a prompt without an image
LENGTHS = np.array([5, 12, 7, 9, 6])
STOPS = 1  # the prompt that emits the stop token
BATCH = {"vision": {"images": IMAGES}, "llm": {"tokens": TOKENS, "image_positions": POSITIONS}}


@functools.cache
def trainer_on(placement, compute_dtype=None):
    return hetjax.Trainer(
        GRAPH,
        Placement(PLACEMENTS[placement]),
        optimizer=optax.sgd(0.1),
        frozen=("vision",),
        compute_dtype=compute_dtype,
    )


@functools.cache
def state_on(placement, compute_dtype=None):
    return trainer_on(placement, compute_dtype).init(seed=0)
