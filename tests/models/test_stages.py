import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from hetjax.models import LanguageModel, ModelError, VisionEncoder
from hetjax.models.stages import LayerCosts, balanced_layers, even_layers
from tests.harness.choices import others_slow
from tests.harness.models.tiny_models import (
    DECODER,
    VISION,
    build_decoder,
    build_vision,
    call,
    cast,
    decoder_batch,
    flat,
    image_batch,
    relative_error,
)

ENDS = {
    "decoder": ({("embedding",)}, {("norm", "scale"), ("head", "kernel")}),
    "vision": (
        {("positions",), ("patch", "kernel"), ("patch", "bias")},
        {("norm", "scale"), ("norm", "bias")}
        | {("projector", layer, kind) for layer in ("up", "down") for kind in ("kernel", "bias")},
    ),
}
BUILD = {"decoder": build_decoder, "vision": build_vision}


def chain(stages, inputs):
    """Run the stages one after another, giving each exactly its input ports."""
    given = dict(inputs)
    for stage in stages:
        out = stage(**{port: given[port] for port in stage.input_ports if port in given})
        given |= out
    return out


def objective(model_name, out):
    return out["loss"] if model_name == "decoder" else jnp.sum(jnp.sin(out["tokens"]))


def joined(states):
    """The states of the stages as one {path: array}, layers in order."""
    whole = {}
    for state in states:
        for path, weight in flat(state).items():
            whole[path] = np.concatenate([whole[path], weight]) if path in whole else weight
    return whole


def value_and_gradients(name, parts):
    """Loss and gradients of the chained parts, as {path: array} over all layers."""
    inputs = decoder_batch(np.float64) if name == "decoder" else {"images": image_batch(np.float64)}
    definitions, states = zip(*[nnx.split(part) for part in parts], strict=True)

    def run(states):
        return objective(name, chain([nnx.merge(*pair) for pair in zip(definitions, states, strict=True)], inputs))

    value, gradients = jax.jit(jax.value_and_grad(run))(states)
    return value, joined(gradients)


@pytest.mark.parametrize(("name", "counts"), [("decoder", (2, 4)), ("vision", (2,))])
def test_chained_stages_give_the_loss_and_gradients_of_the_whole(float64, name, counts):
    whole = cast(BUILD[name](), jnp.float64)
    want, want_gradients = value_and_gradients(name, [whole])
    for count in counts:
        value, gradients = value_and_gradients(name, [whole.stage(i, count) for i in range(count)])
        assert relative_error(value, want) < 1e-12
        assert gradients.keys() == want_gradients.keys()
        for path, gradient in want_gradients.items():
            assert np.abs(gradient).max() > 0, path
            assert relative_error(gradients[path], gradient) < 1e-10, (count, path)


@pytest.mark.parametrize("name", ["decoder", "vision"])
def test_the_one_stage_of_one_is_the_whole(name):
    definition, weights = nnx.split(BUILD[name]())
    stage_definition, stage_weights = nnx.split(BUILD[name]().stage(0, 1))
    assert stage_definition == definition
    assert flat(stage_weights).keys() == flat(weights).keys()
    for path, weight in flat(weights).items():
        np.testing.assert_array_equal(flat(stage_weights)[path], weight)


@pytest.mark.parametrize("name", others_slow(["decoder", "vision"], ["decoder"]))
def test_stages_built_in_a_jit_hold_the_weights_of_the_whole(name):
    build = {
        "decoder": lambda: LanguageModel(DECODER, rngs=nnx.Rngs(0)),
        "vision": lambda: VisionEncoder(VISION, rngs=nnx.Rngs(0)),
    }[name]
    count = 2
    whole = flat(jax.jit(lambda: nnx.state(build()))())
    states = [jax.jit(lambda i=i: nnx.state(build().stage(i, count)))() for i in range(count)]
    assert joined(states).keys() == whole.keys()
    for path, weight in joined(states).items():
        np.testing.assert_array_equal(weight, whole[path], err_msg=str(path))
    first, last = ENDS[name]
    middle = {path for path in whole if path[0] == "layers"}
    assert [flat(state).keys() for state in states] == [middle | first, middle | last]


def test_abstract_stages_have_the_shapes_and_dims_of_the_rows():
    abstract = dict(nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: build_decoder().stage(1, 4)))))
    kernel = abstract["layers", "block", "mlp", "up", "kernel"]
    assert kernel.shape == (1, 32, 40)
    assert kernel.out_sharding == ("layers", "embed", "mlp")
    assert {path[0] for path in abstract} == {"layers"}


def test_input_ports_say_what_each_stage_takes():
    decoder, vision = build_decoder(), build_vision()
    embed = ("tokens", "image_tokens", "image_positions", "audio_tokens", "audio_positions")
    assert decoder.input_ports == (*embed, "segments", "labels", "loss_weights")
    assert decoder.optional_ports == (*embed[1:], "segments")
    assert [decoder.stage(i, 4).input_ports for i in range(4)] == [
        (*embed, "segments"), ("hidden", "segments"), ("hidden", "segments"),
        ("hidden", "segments", "labels", "loss_weights")]  # fmt: skip
    assert [vision.stage(i, 2).input_ports for i in range(2)] == [("images",), ("hidden",)]
    for model in (decoder, decoder.stage(1, 2), vision, vision.stage(1, 2)):
        assert set(model.input_ports) <= inspect.signature(type(model).__call__).parameters.keys()
        assert set(model.optional_ports) <= set(model.input_ports)


def test_cutting_leaves_the_whole_model_as_it_was():
    model = build_decoder()
    before = flat(nnx.state(model))
    model.stage(1, 2)
    assert model.layers.count == 4
    assert flat(nnx.state(model)).keys() == before.keys()
    assert call(model, **decoder_batch())["loss"] > 0


@pytest.mark.parametrize(
    ("index", "count", "told"),
    [(0, 8, "1 <= stages <= layers .* 8 stages are to share 4 layers"), (0, 0, "0 stages"), (2, 2, r"index 2.*0\.\.1")],
)
def test_cuts_into_more_stages_than_layers_are_refused(index, count, told):
    for build in BUILD.values():
        with pytest.raises(ModelError, match=told):
            build().stage(index, count)


def test_a_stage_is_not_cut_again_and_names_what_it_lacks():
    stage = build_decoder().stage(1, 2)
    with pytest.raises(ModelError, match="stage 1 of 2 already"):
        stage.stage(0, 2)
    with pytest.raises(ModelError, match=r"stage 1 of 2: the call lacks hidden; does not take tokens"):
        stage(**{key: value for key, value in decoder_batch().items() if "image" not in key})


def test_chained_decoding_equals_the_whole():
    model, batch = build_decoder(), decoder_batch()
    positions = np.broadcast_to(np.arange(12), (4, 12))
    last = np.array([11, 3, 5, 0])
    images = {key: batch[key] for key in ("image_tokens", "image_positions")}

    def decode(parts):
        out, caches, given = {"tokens": batch["tokens"], **images}, [], {}
        for part in parts:
            given = {"last": last} if part.cut.last else {}
            cache = part.init_cache(4, 16, jnp.float32)
            out, cache = nnx.jit(type(part).decode)(part, cache, positions=positions, **out, **given)
            dims = part.cache_dims()
            assert jax.tree.structure(dims, is_leaf=lambda x: type(x) is tuple) == jax.tree.structure(cache)
            assert [len(names) for names in dims] == [array.ndim for array in cache]
            caches.append(cache)
        return out["logits"], jax.tree.map(lambda *rows: jnp.concatenate(rows), *caches)

    want_logits, want_cache = decode([model])
    logits, cache = decode([model.stage(i, 2) for i in range(2)])
    np.testing.assert_allclose(logits, want_logits, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), cache, want_cache)


@pytest.mark.parametrize(
    ("layers", "told"),
    [((1, 2), r"1\+2 = 3 layers do not make up its 4"), ((0, 4), r"0\+4"), ((1, 1, 2), r"2 stages with 1\+1\+2 = 4")],
)
def test_layers_that_do_not_add_up_are_refused(layers, told):
    with pytest.raises(ModelError, match=told):
        build_decoder().stage(0, 2, layers)


def test_an_uneven_list_of_layers_cuts_runs_of_these_lengths():
    assert [build_decoder().stage(index, 2, (1, 3)).layers.count for index in range(2)] == [1, 3]


def test_even_cuts_give_stages_in_the_middle_what_is_left_over():
    assert even_layers(4, 2) == (2, 2)
    assert even_layers(10, 4) == (2, 3, 3, 2)
    assert even_layers(5, 3) == (2, 2, 1)
    assert sum(even_layers(23, 6)) == 23


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=7),
    st.integers(0, 20),
    st.integers(0, 20),
    st.data(),
)
def test_balanced_cuts_cost_no_more_than_any_other(layers, first, last, data):
    count = data.draw(st.integers(1, len(layers)))
    costs = LayerCosts(first=first, layers=tuple(layers), last=last)

    def cost(borders):
        ends = itertools.pairwise((0, *borders, len(layers)))
        stages = [sum(layers[start:stop]) for start, stop in ends]
        stages[0] += first
        stages[-1] += last
        return max(stages)

    found = balanced_layers(costs, count)
    assert len(found) == count and sum(found) == len(layers) and min(found) >= 1
    least = min(cost(borders) for borders in itertools.combinations(range(1, len(layers)), count - 1))
    assert cost(tuple(itertools.accumulate(found))[:-1]) == least


def test_a_large_vocabulary_leaves_fewer_layers_to_the_last_stage():
    model = build_decoder()
    costs = dataclasses.replace(model.layer_costs, last=2.5 * model.layer_costs.layers[0])
    assert balanced_layers(costs, 2) == (3, 1)
