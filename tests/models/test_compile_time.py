"""How long the 52 layers of the family take to compile, beside one layer of each kind."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from hetjax.models import NemotronH
from hetjax.models.parts.groups import Group, find_groups
from hetjax.models.remat import remat_in_force
from tests.harness.models.nemotron_nano import NANO
from tests.harness.models.tiny_hybrid import HYBRID
from tests.harness.processes import run_processes

AT_MOST = 4.4  # times, a tenth of it for what else runs
SMALL = dataclasses.replace(HYBRID, width=32, vocab_size=64)


def seconds_to_compile(pattern: str) -> float:
    """CPU time from tracing to the program of a loss and its gradients: what others run on the machine has no say."""
    model = nnx.eval_shape(lambda: NemotronH(dataclasses.replace(SMALL, pattern=pattern), rngs=nnx.Rngs(0)))
    definition, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, batch):
        return nnx.merge(definition, params, rest, copy=True)(**batch)["loss"]

    rows = (2, 64)
    ids, weights = jax.ShapeDtypeStruct(rows, jnp.int32), jax.ShapeDtypeStruct(rows, jnp.float32)
    start = time.process_time()
    jax.jit(jax.value_and_grad(loss)).lower(
        params, rest, {"tokens": ids, "labels": ids, "loss_weights": weights}
    ).compile()
    return time.process_time() - start


def layers_to_compile(items) -> str:
    """The letters of all units, those of groups in units once."""
    return "".join(layers_to_compile(item.unit) if isinstance(item, Group) else item.letter for item in items)


def test_the_compiler_sees_ten_layers_of_52():
    assert sorted(layers_to_compile(find_groups(NANO.pattern))) == sorted("MMMMEEEE**")


def times_to_compile() -> tuple[float, float]:
    """Of one layer of each kind, and of the whole pattern."""
    jax.config.update("jax_enable_compilation_cache", False)  # else the second is read from a file
    with remat_in_force("full"):
        seconds_to_compile("*")  # what is slow the first time has been done
        one, all_of_them = min(seconds_to_compile("M*E") for _ in range(2)), seconds_to_compile(NANO.pattern)
        if all_of_them > AT_MOST * one:  # again, as one layer of each kind
            all_of_them = min(all_of_them, seconds_to_compile(NANO.pattern))
        return one, all_of_them


@pytest.mark.slow
def test_the_whole_pattern_compiles_in_four_times_one_layer_of_each_kind():
    """With layers computed again in the backward, as a model of this depth trains."""
    # In a process of its own, which compiles as a user's run does, and each program as often as it is asked for.
    ((one, all_of_them),) = run_processes(1, times_to_compile, devices=1, timeout=240, optimize=True, share=False)
    print(f"{all_of_them:.1f} s, {one:.1f} s for one of each: {all_of_them / one:.2f} times")
    assert all_of_them <= AT_MOST * one, all_of_them / one
