"""Layers out of stacks of JAX names, as they stand in programs of this project and of JAX alone."""

import jax
import jax.numpy as jnp
import pytest

from hetjax.compilation.hlo import largest_arrays, matrix_products, read_program
from hetjax.compilation.hlo.layers import layer_of


@pytest.mark.parametrize(
    ("op_name", "layer"),
    [
        ("jit(forward)/vmap(jvp())/while/body/closed_call/layer/mlp/checkpoint/erfc", "layer/mlp"),
        ("jit(forward)/vmap(jvp(patch_embedding))/jit(_where)/select_n", "patch_embedding"),
        ("jit(f)/transpose(jvp(layer))/attention/rematted_computation/shard_map/dot_general", "layer/attention"),
        ("jit(f)/transpose(jvp(projector))/mlp/vmap(jvp(projector))/mlp/checkpoint/mul", "projector/mlp"),
        ("jit(f)/while/body/closed_call/layer/experts/router/bsd,de->bse/dot_general", "layer/experts/router"),
        ("jit(f)/jit(mha)/mha_forward/pallas_call", "mha_forward"),
        ("jit(f)/transpose(jvp(mha_backward))/pallas_call", "mha_backward"),
        ("jit(f)/jvp()/while/body/eval_jaxpr/attn/tanh", "attn"),
        ("jit(f)/cond/branch_1_fun/second_round/dot_general", "second_round"),
        ("jit(f)/reshape", ""),
        ("params['projector/mlp/down/kernel']", ""),
        ("", ""),
    ],
)
def test_named_scopes_are_the_layer(op_name, layer):
    assert layer_of(op_name) == layer


def test_a_compiled_program_names_its_layers_forward_and_backward():
    def loss(weights, x):
        def layer(x, weight):
            with jax.named_scope("layer"), jax.named_scope("mlp"):
                return jnp.tanh(x @ weight), None

        return (jax.lax.scan(layer, x, weights)[0] ** 2).sum()

    shapes = jax.ShapeDtypeStruct((3, 32, 32), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
    program = read_program(jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text())
    assert {each.layer for each in matrix_products(program).known} == {"layer/mlp"}
    (activations,) = (each for each in largest_arrays(program) if str(each.shape) == "f32[16,32]")
    assert activations.layer == "layer/mlp"


def test_what_has_no_name_is_called_after_what_it_was_made_from():
    text = """
%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %t = f32[8]{0} tanh(%p), metadata={op_name="jit(f)/gate/tanh"}
  ROOT %c = f32[8]{0} copy(%t)
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0), metadata={op_name="x"}
  %f = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused
  ROOT %c = f32[8]{0} copy(%f), metadata={scheduling_name="c"}
}"""
    (made,) = largest_arrays(read_program(text))
    assert (made.layer, made.made_by) == ("gate", (("fusion copy", 1), ("copy", 1)))
