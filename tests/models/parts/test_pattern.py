import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models.parts.groups import layer_places
from hetjax.models.parts.pattern import PatternStack
from hetjax.models.remat import remat_in_force

PATTERN = "ABBABBC"  # (A(B)2)2(C)1


class Tally(nnx.Variable):
    """State that does not train."""


class Layer(nnx.Module):
    """Multiplies and adds; a B counts what it was given."""

    def __init__(self, letter, rngs):
        self.letter = letter
        self.scale = nnx.Param(jax.random.normal(rngs.params(), (3,)))
        self.seen = Tally(jnp.zeros(3)) if letter == "B" else None

    def __call__(self, x):
        if self.letter == "B":
            self.seen[...] = self.seen[...] + x
        return x * 0.5 + self.scale[...] if self.letter == "A" else jnp.sin(x) * self.scale[...]

    def end_of_step(self):
        if self.letter == "B":
            self.seen[...] = -self.seen[...]


def build(pattern=PATTERN):
    return PatternStack(pattern, Layer, rngs=nnx.Rngs(3))


def of_layers(stack, pattern, name):
    """An array of each layer that has it, in order."""
    arrays = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(stack))}
    places = [(f"{place.path}/{name}", place.index) for place in layer_places(pattern)]
    return [arrays[path][index] for path, index in places if path in arrays]


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scan_equals_a_python_loop_over_layers(remat):
    stack, x = build(), jnp.array([1.0, 2.0, 3.0])
    definition, state = nnx.split(stack)

    @jax.jit
    def run(state, x):
        inner = nnx.merge(definition, state)
        each = inner.tree(lambda letter, sizes: jnp.full(sizes, ord(letter)))
        with remat_in_force(remat):
            y, outs = inner.scan(lambda layer, x, own: (layer(x), (x.sum(), own)), x, each)
        inner.end_of_step()
        return y, outs, nnx.state(inner, Tally)

    y, outs, tallies = run(state, x)
    before = []
    for letter, scale in zip(PATTERN, of_layers(stack, PATTERN, "scale"), strict=True):
        before.append(x)
        x = x * 0.5 + scale if letter == "A" else jnp.sin(x) * scale
    np.testing.assert_allclose(y, x, rtol=1e-5)
    nnx.update(stack, tallies)
    want = [-row for row, letter in zip(before, PATTERN, strict=True) if letter == "B"]
    np.testing.assert_allclose(of_layers(stack, PATTERN, "seen"), want, rtol=1e-5)
    for place, row in zip(layer_places(PATTERN), before, strict=True):
        out = outs
        for name in place.path.split("/"):
            out = out[name]
        np.testing.assert_allclose(out[0][place.index], row.sum(), rtol=1e-5)
        assert out[1][place.index] == ord(place.letter)


def test_rows_kept_do_not_change_and_keep_their_paths():
    whole, part = build(), build()
    assert (whole.units, whole.count) == (("ABB", "ABB", "C"), 3)
    part.keep(1, 2)
    assert (part.units, part.count) == (("ABB",), 1)
    held = dict(nnx.to_flat_state(nnx.state(whole)))
    kept = dict(nnx.to_flat_state(nnx.state(part)))
    assert {path[0] for path in kept} == {"group0"}
    for path, leaf in kept.items():
        np.testing.assert_array_equal(leaf[...], held[path][...][1:2])


def test_layers_start_out_different():
    scales = of_layers(build(), PATTERN, "scale")
    assert len({np.asarray(scale).tobytes() for scale in scales}) == len(PATTERN)
