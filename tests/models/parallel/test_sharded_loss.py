import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from hetjax.compilation.hlo import collectives
from hetjax.meshes import Layout
from hetjax.models.dims import RESIDUAL, SEQUENCE
from hetjax.models.kernels import token_losses
from hetjax.models.parallel.layout_in_force import layout_in_force
from hetjax.models.parts.loss import cross_entropy
from tests.harness.models.layouts import constraint_of, splits_of

# B batch · S sequence · D width · V vocabulary
B, S, D, V = 4, 8, 12, 40
LAYOUTS = {
    "tensor4": Layout(tensor=4),
    "tensor4-whole-rows": Layout(tensor=4, sequence_parallel=False),
    "data2-fsdp2-tensor2": Layout(data=2, fsdp=2, tensor=2),
    "fsdp4-zero1": Layout(fsdp=4, zero=1),
    "expert2-context2-tensor2": Layout(expert=2, context=2, tensor=2),
    # The head is gathered over an axis that tokens are not split by: the compiler's to run.
    "batch-not-on-fsdp": Layout(data=2, fsdp=2, tensor=2, rules={"batch": "data"}),
}
DIMS = {0: ("vocab", "embed"), 1: ("embed", "vocab")}


def placed(layout, vocab_dim, dtype):
    """Hidden states, a head, labels and weights, as a layout has them."""
    random, mesh = np.random.default_rng(2), splits_of(layout).mesh
    head = random.normal(size=(V, D)).astype(dtype)
    head = head if vocab_dim == 0 else head.T
    x, weights = random.normal(size=(B, S, D)).astype(dtype), random.uniform(size=(B, S)).astype(dtype)
    labels = random.integers(0, V, (B, S))
    specs = [
        layout.activation_spec((*RESIDUAL, "embed"), x.shape, name="x"),
        layout.compute_spec(DIMS[vocab_dim], head.shape, name="head"),
        *[layout.activation_spec(SEQUENCE, labels.shape, name="labels")] * 2,
    ]
    arrays = x, head, labels, weights
    return [jax.device_put(each, NamedSharding(mesh, spec)) for each, spec in zip(arrays, specs, strict=True)]


def value_and_gradients(layout, vocab_dim):
    """Of the loss, as a function of hidden states and head."""

    def run(*arguments):
        with layout_in_force(constraint_of(layout), splits_of(layout)):
            return cross_entropy(*arguments, vocab_dim=vocab_dim)

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1)))


@pytest.mark.parametrize("vocab_dim", DIMS, ids=["table", "head"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_split_head_gives_the_loss_and_gradients_of_a_whole_one(float64, monkeypatch, layout, vocab_dim):
    arrays = placed(layout, vocab_dim, np.float64)
    want = jax.value_and_grad(lambda *of: cross_entropy(*of, vocab_dim=vocab_dim), argnums=(0, 1))(
        *jax.tree.map(np.asarray, arrays)
    )
    # Three tokens a chunk: no layout's tokens divide by that.
    for most in (token_losses.MOST_LOGITS, 3 * V // layout.tensor):
        monkeypatch.setattr(token_losses, "MOST_LOGITS", most)
        got = value_and_gradients(layout, vocab_dim)(*arrays)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())


@pytest.mark.parametrize("most", [token_losses.MOST_LOGITS, 2 * V], ids=["one-chunk", "chunks"])
def test_statistics_of_all_tokens_travel_once_and_no_logits_do(monkeypatch, most):
    """A maximum and two sums a token over the parts of the vocabulary, whatever the number of chunks."""
    monkeypatch.setattr(token_losses, "MOST_LOGITS", most)
    layout = Layout(tensor=4)
    arrays = placed(layout, 1, np.float32)
    text = value_and_gradients(layout, 1).lower(*arrays).compile().as_text()
    found = sorted((each.kind, each.result_bytes) for each in collectives(text))
    tokens = B * S * 4
    # The rows of the residual stream, once forward and once backward (or once in all, merged), and their gradient.
    gathers = [each for each in found if each[0] == "all-gather"]
    assert 1 <= len(gathers) <= 2 and set(gathers) == {("all-gather", tokens * D)}
    rest = [each for each in found if each[0] != "all-gather"]
    assert rest == [("all-reduce", tokens), ("all-reduce", 2 * tokens), ("reduce-scatter", tokens * D // 4)]


def test_the_head_is_gathered_outside_of_the_loop_over_chunks(monkeypatch):
    monkeypatch.setattr(token_losses, "MOST_LOGITS", 2 * V)
    layout = Layout(fsdp=4)
    text = value_and_gradients(layout, 1).lower(*placed(layout, 1, np.float32)).compile().as_text()
    found = [each for each in collectives(text) if each.result_bytes > 4]
    assert {(each.kind, each.result_bytes) for each in found} == {
        ("all-gather", V * D * 4),
        ("reduce-scatter", V * D * 4 // 4),
    }
    assert len(found) <= 3
