"""The hybrid language model: its size, packed documents, pruned images, and generation with a cache."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models import ModelError, NemotronH
from hetjax.models.arrays import arrays_by_path
from hetjax.models.parts.groups import layer_places
from hetjax.models.parts.router import RoutingState
from tests.harness.models.generate import generate
from tests.harness.models.nemotron_nano import NANO
from tests.harness.models.tiny_hybrid import HYBRID, WITHOUT_LOSS, build_hybrid, hybrid_batch, loss_and_gradients
from tests.harness.models.tiny_models import relative_error


def count(state) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def test_full_size_has_the_parameters_of_the_release():
    model = nnx.eval_shape(lambda: NemotronH(NANO, rngs=nnx.Rngs(0)))
    assert count(nnx.state(model, nnx.Param)) == 31_577_937_344
    # Per component, from the sizes of the release's tensors.
    mamba = 2688 * 10304 + 6144 * 4 + 6144 + 3 * 64 + 4096 + 4096 * 2688
    attention = 2 * 2688 * 4096 + 2 * 2688 * 256
    experts = 128 * 2 * 2688 * 1856 + 2 * 2688 * 3712 + 128 * 2688
    want = {"M": 23 * mamba, "*": 6 * attention, "E": 23 * experts}
    shapes = {path: math.prod(leaf.shape) for path, leaf in arrays_by_path(model).items() if "/router/b" not in path}
    got = dict.fromkeys(want, 0)
    for place in {place.path: place for place in layer_places(NANO.pattern)}.values():
        held = [size for path, size in shapes.items() if path.startswith(f"layers/{place.path}/mixer/")]
        got[place.letter] += sum(held)
    assert got | {"E": got["E"] - 23 * 128} == want, "without the counts of routers"
    assert shapes["embedding"] == shapes["head/kernel"] == 131072 * 2688
    biases = [leaf for leaf in jax.tree.leaves(nnx.state(model, RoutingState)) if leaf.dtype != jnp.int32]
    assert count(biases) == 23 * 128


def test_packed_documents_give_the_loss_and_gradients_of_each_alone(float64):
    model, batch = build_hybrid(WITHOUT_LOSS, np.float64), hybrid_batch(samples=2, rows=13, dtype=np.float64)
    loss, gradients = loss_and_gradients(model, batch)
    want, want_gradients = 0.0, {}
    documents = []
    for sample in range(2):
        for segment in np.unique(batch["segments"][sample]):
            rows = batch["segments"][sample] == segment
            documents.append({key: batch[key][sample : sample + 1, rows] for key in batch if key != "segments"})
    assert len(documents) > 4
    for document in documents:
        # Padded at their ends to one shape: what is there has no weight, and nothing sees it.
        alone = {key: np.pad(array, ((0, 0), (0, 13 - array.shape[1]))) for key, array in document.items()}
        part, part_gradients = loss_and_gradients(model, alone)
        want += part
        want_gradients = {path: want_gradients.get(path, 0) + each for path, each in part_gradients.items()}
    assert relative_error(loss, want) < 1e-12
    for path, gradient in gradients.items():
        assert relative_error(gradient, want_gradients[path]) < 1e-10, path


def decoded(model, tokens, lengths, steps, prompt):
    """Logits [B, steps, V] of the tokens that follow the prompts, whose ends are padded to `prompt` rows."""
    batch = len(tokens)
    padded = np.where(np.arange(prompt) < lengths[:, None], tokens[:, :prompt], 3)

    @nnx.jit
    def run(model, cache, positions, tokens, lengths, last):
        return model.decode(cache, positions=positions, tokens=tokens, lengths=lengths, last=last)

    cache = model.init_cache(batch, prompt + steps, jnp.float32)
    positions = np.broadcast_to(np.arange(prompt), padded.shape)
    out, cache = run(model, cache, positions, padded, jnp.asarray(lengths), jnp.asarray(lengths - 1))
    logits = [out["logits"]]
    for step in range(steps - 1):
        rows = (lengths + step)[:, None]
        out, cache = run(model, cache, rows, np.take_along_axis(tokens, rows, axis=1), None, None)
        logits.append(out["logits"])
    return np.stack(logits, axis=1)


def test_decoding_of_prompts_of_unlike_lengths_equals_the_whole_model():
    model = build_hybrid(WITHOUT_LOSS)
    tokens, lengths = hybrid_batch(samples=3, rows=14, packed=False)["tokens"], np.array([5, 9, 2])
    steps = 5
    got = decoded(model, tokens, lengths, steps, prompt=9)

    @nnx.jit
    def whole(model, tokens):
        cache = model.init_cache(1, tokens.shape[1], jnp.float32)
        return model.decode(cache, positions=jnp.arange(tokens.shape[1])[None], tokens=tokens)[0]["logits"]

    for sample, length in enumerate(lengths):
        for step in (0, steps - 1):
            # A prompt without any padding, and without steps.
            want = whole(model, tokens[sample : sample + 1, : length + step])
            assert relative_error(got[sample, step], want[0]) < 1e-5, (sample, step)


@pytest.mark.slow
@pytest.mark.quick
def test_a_prefill_has_the_loss_of_training(float64):
    """The two ways through the model agree: cross entropy of a prefill's last row, and that of a batch."""
    model = build_hybrid(WITHOUT_LOSS, np.float64)
    batch = hybrid_batch(samples=2, rows=11, dtype=np.float64, packed=False)
    weights = np.zeros((2, 11))
    weights[:, -1] = 1
    loss, _ = loss_and_gradients(model, {**batch, "loss_weights": weights})
    cache = model.init_cache(2, 11, jnp.float64)
    positions = np.broadcast_to(np.arange(11), (2, 11))
    logits = model.decode(cache, positions=positions, tokens=batch["tokens"])[0]["logits"]
    want = -sum(jax.nn.log_softmax(logits[i])[batch["labels"][i, -1]] for i in range(2))
    assert relative_error(loss, want) < 1e-12


# Rows 2..7 of a sample are placeholders of its six image tokens; the second sample has only four.
POSITIONS = np.array([[2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 20, 20]])
KEPT = np.array([[0, 1, 4, 6], [1, 2, 3, 6]])  # 6 is padding


def pruned_batch(dtype):
    batch = hybrid_batch(samples=2, rows=13, dtype=dtype)
    batch["loss_weights"][:, -2:] = 0
    images = np.random.default_rng(3).normal(size=(2, 4, HYBRID.width)).astype(dtype)
    return {**batch, "image_tokens": images, "image_positions": POSITIONS, "image_kept": KEPT}


def compacted(batch):
    """By hand: the rows that are left, padded at the end, and the rows of the tokens kept."""
    rows = [[row for row in range(13) if row not in gone] for gone in ({4, 5, 7}, {2})]
    take = lambda array: np.stack([array[i, (rows[i] + [12])[:11]] for i in range(2)])  # noqa: E731
    inputs = {key: take(batch[key]) for key in ("tokens", "labels", "loss_weights", "segments")}
    places = np.array([[2, 3, 4, 11], [2, 3, 4, 11]])
    return {**inputs, "image_tokens": batch["image_tokens"], "image_positions": places}


@pytest.mark.slow
@pytest.mark.quick
def test_pruned_image_tokens_leave_the_sequence(float64):
    model, batch = build_hybrid(WITHOUT_LOSS, np.float64), pruned_batch(np.float64)
    loss, gradients = loss_and_gradients(model, batch)
    want, want_gradients = loss_and_gradients(model, compacted(batch))
    assert relative_error(loss, want) < 1e-12
    for path, gradient in gradients.items():
        assert relative_error(gradient, want_gradients[path]) < 1e-10, path


@pytest.mark.slow
@pytest.mark.quick
def test_every_stage_takes_out_the_same_rows(float64):
    model, batch = build_hybrid(HYBRID, np.float64), pruned_batch(np.float64)
    want, _ = loss_and_gradients(model, batch)
    parts = [model.stage(i, 3) for i in range(3)]
    out = {}
    for part in parts:
        given = {**batch, **out}
        out = part(**{port: given[port] for port in part.input_ports if port in given})
    assert out.keys() == {"loss", "features"}
    assert relative_error(out["loss"], want) < 1e-12
    assert parts[0].input_ports[-3:] == ("segments", "image_positions", "image_kept")
    assert parts[1].input_ports == ("hidden", "balance", "segments", "image_positions", "image_kept")


@pytest.mark.slow
@pytest.mark.quick
def test_answers_to_pruned_images_are_those_to_the_rows_left():
    model, batch = build_hybrid(WITHOUT_LOSS), pruned_batch(np.float32)
    lengths, by_hand = np.array([12, 12]), compacted(batch)
    options = {"max_new_tokens": 4, "stop_token": -1}
    got = generate(
        model, batch["tokens"], jnp.asarray(lengths), batch["image_tokens"], POSITIONS, image_kept=jnp.asarray(KEPT),
        **options,
    )  # fmt: skip
    want = generate(
        model, by_hand["tokens"], jnp.asarray(lengths - [3, 1]), by_hand["image_tokens"], by_hand["image_positions"],
        **options,
    )  # fmt: skip
    np.testing.assert_array_equal(got, want)


def test_stages_are_cut_between_rows_of_groups():
    model = build_hybrid()
    assert model.layers.units == ("M", "M*EE", "M*EE")
    costs = model.layer_costs
    assert len(costs.layers) == 3 and costs.layers[1] == costs.layers[2] > costs.layers[0]
    whole = arrays_by_path(model)
    first, second = model.stage(0, 2, [2, 1]), model.stage(1, 2, [2, 1])
    parts = arrays_by_path(first), arrays_by_path(second)
    assert parts[0].keys() | parts[1].keys() == whole.keys()
    assert not any(path.startswith("layers/group0/") for path in parts[1])
    for path, array in whole.items():
        held = [part[path] for part in parts if path in part]
        np.testing.assert_array_equal(np.concatenate(held) if len(held) > 1 else held[0], array)


@pytest.mark.slow
@pytest.mark.quick
def test_a_tied_head_is_the_embedding(float64):
    tied = dataclasses.replace(WITHOUT_LOSS, tie_embeddings=True)
    model, batch = build_hybrid(WITHOUT_LOSS, np.float64), hybrid_batch(samples=2, rows=8, dtype=np.float64)
    shell = build_hybrid(tied, np.float64)
    assert not hasattr(shell, "head")
    model.head.kernel.set_value(model.embedding[...].T)
    nnx.update(shell, nnx.state({"layers": model.layers, "norm": model.norm, "embedding": model.embedding}))
    want, _ = loss_and_gradients(model, batch)
    assert relative_error(loss_and_gradients(shell, batch)[0], want) < 1e-12
    with pytest.raises(ModelError, match="stages = 2 must be 1"):
        shell.stage(0, 2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pattern": "MX"}, r"pattern 'MX' has X; use M \(Mamba-2\)"),
        ({"pattern": ""}, "has no letter"),
        ({"pattern": "M-"}, "mlp_width is 0"),
        ({"mamba": None}, "mamba is None"),
        ({"kv_heads": 3}, "heads % kv_heads = 4 % 3 = 1 must be 0"),
        ({"width": 0}, "width = 0 must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, told):
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(HYBRID, **changes)


def test_kept_tokens_without_their_positions_are_refused():
    batch = {key: value for key, value in pruned_batch(np.float32).items() if key != "image_positions"}
    with pytest.raises(ModelError, match="image_kept came without image_positions"):
        build_hybrid()(**batch)
