"""What blocks send between devices, read from what was compiled: which operations, how many, of how many bytes."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from hetjax.compilation.hlo import bytes_received, collectives
from hetjax.meshes import Layout
from hetjax.models import DecoderConfig, VisionConfig
from hetjax.models.decoder_block import DecoderBlock
from hetjax.models.dims import RESIDUAL
from hetjax.models.parallel.layout_in_force import layout_in_force
from hetjax.models.parallel.zigzag_order import causal_order
from hetjax.models.parts.rope import rope_table
from hetjax.models.parts.stack import Stack
from hetjax.models.parts.vision_block import VisionBlock
from hetjax.stages.flat_state import flatten_module
from tests.harness.choices import others_slow
from tests.harness.compile_quickly import quickly
from tests.harness.models.layouts import constraint_of, splits_of

# Unlike sizes, so that bytes tell which array moves. D width
B, S, D = 4, 24, 32
DECODER = DecoderConfig(vocab_size=8, width=D, layers=3, heads=8, kv_heads=4, head_dim=6, mlp_width=40)
VISION = VisionConfig(
    image_size=8, patch_size=4, width=D, layers=3, heads=4, mlp_width=40, projector_width=8, output_width=8
)
LAYOUTS = {"tensor2": {"tensor": 2}, "tensor4": {"tensor": 4}, "data2-tensor4": {"data": 2, "tensor": 4}}
# The decoder in every layout; by default the others in the one of both axes.
BLOCKS = [
    pytest.param(
        *(kind, degrees),
        id=f"{kind}-{name}",
        marks=[] if kind == "decoder" or name == "data2-tensor4" else [pytest.mark.slow, pytest.mark.quick],
    )
    for kind in ("decoder", "vision", "stack")
    for name, degrees in LAYOUTS.items()
]
ACTIVATION = B * S * D * 4
TEXTS: dict[tuple[str, str], tuple[str, str]] = {}


def decoder(block, x):
    order = causal_order(S)
    rope = rope_table(jnp.asarray(order.positions)[None], DECODER.head_dim, DECODER.rope_theta, x.dtype)
    return block(x, order=order, rope=rope)[0]


def vision(block, x):
    return block(x)


@quickly()
def make(kind: str):
    """(module, the function that runs it)."""
    config, block, call = {
        "decoder": (DECODER, DecoderBlock, decoder),
        "vision": (VISION, vision_block, vision),
        "stack": (DECODER, DecoderBlock, decoder),
    }[kind]
    if kind != "stack":
        return block(config, rngs=nnx.Rngs(0)), call
    stack = Stack(lambda rngs: block(config, rngs=rngs), config.layers, rngs=nnx.Rngs(0))
    return stack, lambda stack, x: stack.scan(lambda block, x, _: (call(block, x), None), x)[0]


def vision_block(config, *, rngs):
    return VisionBlock(config.width, config.heads, config.mlp_width, norm_epsilon=config.norm_epsilon, rngs=rngs)


def compiled(kind: str, layout: Layout) -> tuple[str, str]:
    """The texts of the forward and the backward program, compiled once for all tests."""
    key = kind, str(layout)
    if key not in TEXTS:
        TEXTS[key] = compile_both(kind, layout)
    return TEXTS[key]


def compile_both(kind: str, layout: Layout) -> tuple[str, str]:
    """The texts of the forward and the backward program; the backward takes what the forward kept."""
    splits = splits_of(layout)
    mesh = splits.mesh
    module, call = make(kind)
    skeleton, params, buffers = flatten_module(module)

    def weight(path, spec_of):
        return NamedSharding(mesh, spec_of(skeleton.dims[path], params[path].shape, name=path))

    def activation(x, dims):
        return NamedSharding(mesh, layout.activation_spec(dims, x.shape, name="x"))

    x = jnp.ones((B, S, D))
    x = jax.device_put(x, activation(x, (*RESIDUAL, "embed")))
    params = jax.device_put(params, {path: weight(path, layout.compute_spec) for path in params})
    gradients = {path: weight(path, layout.optimizer_spec) for path in params}

    def forward(params, x):
        with layout_in_force(constraint_of(layout), splits):
            return jax.vjp(lambda params, x: call(skeleton.assemble(params, buffers), x), params, x)

    program = jax.jit(forward, out_shardings=(x.sharding, None)).lower(params, x).compile()
    y, vjp = program(params, x)
    backward = jax.jit(lambda vjp, y: vjp(y), out_shardings=(gradients, x.sharding)).lower(vjp, y).compile()
    return program.as_text(), backward.as_text()


def instructions(text: str) -> list[str]:
    """The lines of a program's text that compute, without where in the source they are from."""
    return [re.sub(r", metadata=\{[^}]*\}", "", line) for line in text.splitlines() if " = " in line]


def test_the_text_is_the_same_however_quickly_the_program_is_made():
    """What is left out for tests comes after it, so that they read the text of a user's run."""
    texts = []
    for quick in (True, False):
        jax.config.update("jax_disable_most_optimizations", quick)
        texts.append([instructions(text) for text in compile_both("stack", Layout(data=2, tensor=2))])
    assert len(texts[0][1]) > 100
    assert texts[0] == texts[1]


def counted(text: str, devices: int | None = None) -> Counter:
    """{(kind, bytes of the result): how many}, of collectives among so many devices."""
    return Counter((c.kind, c.result_bytes) for c in collectives(text) if devices in (None, c.group_size))


@pytest.mark.parametrize(("kind", "degrees"), BLOCKS)
def test_a_block_has_two_all_reduces_each_way_and_gathers_nothing(kind, degrees):
    layout = Layout(**degrees, sequence_parallel=False)
    forward, backward = compiled(kind, layout)
    two = Counter({("all-reduce", ACTIVATION // layout.data): 2})
    assert counted(forward) == two
    assert counted(backward, layout.tensor) == two
    # Over data the gradients of weights are summed, those of matrices in the parts of the optimizer.
    rest = counted(backward) - two
    assert {what for what, _ in rest} == ({"all-reduce", "reduce-scatter"} if layout.data > 1 else set())


@pytest.mark.parametrize(("kind", "degrees"), BLOCKS)
def test_with_sequence_parallelism_it_has_two_gathers_and_two_scatters_and_no_all_reduce(kind, degrees):
    layout = Layout(**degrees)
    forward, backward = compiled(kind, layout)
    rows = ACTIVATION // layout.data
    scatters = {("reduce-scatter", rows // layout.tensor): 2}
    assert counted(forward) == Counter({("all-gather", rows): 2, **scatters})
    # The rows of two gradients, and once more those that the forward gathered and did not keep.
    moved = Counter({("all-gather", rows): 4, **scatters})
    found = counted(backward)
    assert found & moved == moved
    # What is left are gradients, summed: of vectors over all rows, of kernels over data.
    rest = found - moved
    assert {what for what, _ in rest} == {"all-reduce", *(["reduce-scatter"] if layout.data > 1 else [])}
    if layout.data == 1:
        # Two norms; in the encoder each has a bias, and so have the two maps back to the residual stream.
        vectors = 6 if kind == "vision" else 2
        assert sum(size * count for (_, size), count in rest.items()) == vectors * D * 4


@pytest.mark.parametrize("kind", others_slow(["decoder", "vision"], ["decoder"]))
def test_both_forms_move_the_same_bytes_forward(kind):
    both = [compiled(kind, Layout(tensor=4, sequence_parallel=on))[0] for on in (True, False)]
    assert len({bytes_received(text) for text in both}) == 1
    assert bytes_received(both[0]) == 2 * 2 * 3 * ACTIVATION


@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_the_rows_kept_for_the_backward_shrink_with_sequence_parallelism(sequence_parallel):
    """Inputs of norms and of products are kept in rows: 4 in a block, of a t-th of the sequence each."""
    layout = Layout(tensor=4, sequence_parallel=sequence_parallel)
    forward, _ = compiled("stack", layout)
    kept = forward.partition("\n")[0].partition("->")[2]
    rows = S // 4 if sequence_parallel else S
    assert kept.count(f"f32[3,{B},{rows},{D}]") == 4, kept
