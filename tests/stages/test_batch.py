import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from hetjax import Edge, ModuleGraph
from hetjax.errors import BatchError
from hetjax.meshes import Layout, Placement
from hetjax.stages.batch import input_shapes, loss_tokens, place_inputs
from hetjax.stages.cut import cut_graph
from hetjax.stages.links import make_links
from tests.harness.small_modules import IN, Encoder, Head, Tower

SAMPLES, MICROBATCHES = 16, 2


def make_stages(tower: bool = False):
    """An encoder on four devices into a head on two, or into a tower of two stages."""
    port = "tower.features" if tower else "head.features"
    layout = Layout(devices="4-7", stage=2, fsdp=2) if tower else Layout(devices="4-5", fsdp=2)
    graph = ModuleGraph(
        {"encoder": Encoder, "tower" if tower else "head": Tower if tower else Head}, [Edge("encoder.features", port)]
    )
    placement = Placement({"encoder": Layout(devices="0-3", data=4), "tower" if tower else "head": layout}).resolve(8)
    stages = cut_graph(graph, placement, devices=jax.devices(), frozen=(), param_dtype="float32", compute_dtype=None)
    return stages, make_links(graph, stages)


def make_batch(samples: int = SAMPLES, sink: str = "head"):
    random = np.random.default_rng(0)
    return {
        "encoder": {"x": random.normal(size=(samples, IN))},
        sink: {"labels": np.arange(samples, dtype=np.int64)},
        "loss_tokens": samples,
    }


STAGES, LINKS = make_stages()


def shapes_of(batch, microbatches: int = MICROBATCHES):
    return input_shapes(batch, STAGES, LINKS, microbatches)


def refusal(batch, microbatches: int = MICROBATCHES) -> str:
    with pytest.raises(BatchError) as caught:
        shapes_of(batch, microbatches)
    return str(caught.value)


def test_each_stage_takes_its_inputs_of_one_microbatch():
    shapes = shapes_of(make_batch())
    assert {name: set(taken) for name, taken in shapes.items()} == {"encoder": {"x"}, "head": {"labels"}}
    assert shapes["encoder"]["x"].shape == (8, IN)
    assert shapes["encoder"]["x"].dtype == jnp.float32, "as JAX holds a host float64"
    assert shapes["encoder"]["x"].sharding.spec == P(("data",), None)
    assert shapes["head"]["labels"].sharding.spec == P(("fsdp",))


def test_shapes_alone_serve_as_a_batch():
    batch = make_batch()
    avals = {
        module: {port: jax.ShapeDtypeStruct(array.shape, array.dtype) for port, array in batch[module].items()}
        for module in ("encoder", "head")
    }
    assert shapes_of(avals) == shapes_of(batch)


def test_an_input_goes_to_the_stage_of_a_module_that_takes_it():
    stages, links = make_stages(tower=True)
    shapes = input_shapes(make_batch(sink="tower"), stages, links, MICROBATCHES)
    assert {name: set(taken) for name, taken in shapes.items()} == {
        "encoder": {"x"},
        "tower.0": set(),
        "tower.1": {"labels"},
    }


def test_a_missing_input_is_refused_with_both_ways_to_feed_it():
    batch = make_batch()
    del batch["encoder"]
    assert refusal(batch) == (
        "module 'encoder': nothing feeds its input 'x'; add batch['encoder']['x'] or an edge "
        'hetjax.Edge("...", "encoder.x")'
    )


def test_an_unknown_module_or_input_is_refused_with_the_known_ones():
    batch = make_batch()
    assert refusal({**batch, "audio": batch["encoder"]}) == (
        "the batch has inputs for 'audio', which is no module; the modules are encoder, head"
    )
    assert refusal({**batch, "encoder": {**batch["encoder"], "y": batch["encoder"]["x"]}}) == (
        "the batch has an input 'encoder.y', but module 'encoder' takes x from the batch; rename or drop it"
    )


def test_an_input_that_an_edge_feeds_is_refused_in_the_batch():
    batch = make_batch()
    batch["head"]["features"] = np.zeros((SAMPLES, 8), np.float32)
    assert "but module 'head' takes labels, skip, shift from the batch" in refusal(batch)


def test_inputs_of_unlike_numbers_of_samples_are_refused_with_each_number():
    batch = make_batch()
    batch["head"]["labels"] = batch["head"]["labels"][:12]
    assert refusal(batch) == (
        "the inputs of a batch must lead with the same number of samples, but have encoder.x: 16, head.labels: 12"
    )
    batch["head"]["labels"] = np.int32(3)
    assert refusal(batch).endswith("head.labels: None")


def test_what_is_no_array_is_refused_by_name():
    batch = make_batch()
    assert refusal({**batch, "encoder": batch["encoder"]["x"]}) == (
        "batch['encoder'] is ndarray; a batch is {module: {input: array}}, give the module a dict of its inputs"
    )
    batch["encoder"]["x"] = batch["encoder"]["x"].tolist()
    assert refusal(batch) == "module 'encoder': input 'x' is list; make it an array with np.asarray"


def test_a_batch_that_does_not_divide_is_refused():
    assert "a batch of 16 samples is not divisible into 3 microbatches (16 % 3 = 1)" in refusal(make_batch(), 3)
    assert "module 'encoder': a microbatch of 2 samples (batch 16 / microbatches 8) is not divisible by data=4" in (
        refusal(make_batch(), 8)
    )


def test_each_device_holds_its_own_rows_of_each_microbatch_and_no_others():
    batch = make_batch()
    placed = place_inputs(batch, shapes_of(batch), STAGES, MICROBATCHES)
    assert set(placed) == {(stage, index) for stage in ("encoder", "head") for index in range(MICROBATCHES)}
    for index in range(MICROBATCHES):
        x = placed["encoder", index]["x"]
        rows = {shard.device.id: np.asarray(shard.data) for shard in x.addressable_shards}
        for position in range(4):
            start = index * 8 + position * 2
            device = jax.devices()[position].id
            np.testing.assert_array_equal(rows.pop(device), batch["encoder"]["x"][start : start + 2].astype(np.float32))
        assert rows == {}
        labels = placed["head", index]["labels"]
        assert {shard.device.id: shard.data.tolist() for shard in labels.addressable_shards} == {
            jax.devices()[4].id: list(range(index * 8, index * 8 + 4)),
            jax.devices()[5].id: list(range(index * 8 + 4, index * 8 + 8)),
        }


def place_later(batch) -> str:
    """The refusal of a batch after programs were compiled for `make_batch()`."""
    with pytest.raises(BatchError) as caught:
        place_inputs(batch, shapes_of(make_batch()), STAGES, MICROBATCHES)
    return str(caught.value)


@pytest.mark.parametrize("samples", [SAMPLES // 2, 2 * SAMPLES])
def test_a_later_batch_of_another_size_is_refused_not_cut(samples):
    """The rows beyond those of the first batch must not be dropped in silence."""
    assert place_later(make_batch(samples)) == (
        f"module 'encoder': input 'x' has shape ({samples}, 6) in this batch, but programs were compiled for (16, 6); "
        "keep shapes fixed"
    )


def test_a_later_batch_with_other_inputs_is_refused():
    batch = make_batch()
    batch["head"]["shift"] = np.zeros(SAMPLES, np.int32)
    assert place_later(batch) == (
        "module 'head': this batch has the inputs labels, shift, but programs were compiled for labels; "
        "keep inputs fixed"
    )
    batch = make_batch()
    del batch["encoder"]
    assert place_later(batch) == (
        "module 'encoder': this batch has the inputs (none), but programs were compiled for x; keep inputs fixed"
    )


def test_loss_tokens_are_given_or_the_sum_of_the_loss_weights():
    assert loss_tokens({"loss_tokens": 7, "head": {"loss_weights": np.ones(3)}}, ["head"]) == {"head": 7.0}
    assert loss_tokens({"head": {"loss_weights": np.array([0.5, 0, 2.5], np.float32)}}, ["head"]) == {"head": 3.0}


def test_loss_weights_are_summed_in_double_precision():
    """In float32 sixteen million ones no longer grow by one."""
    weights = np.ones(2**24 + 1, np.float32)
    weights[0] = 2**24
    assert loss_tokens({"head": {"loss_weights": weights}}, ["head"]) == {"head": 2**25}


def test_a_batch_without_any_loss_token_divides_by_one():
    assert loss_tokens({"head": {"loss_weights": np.zeros(3)}}, ["head"]) == {"head": 1.0}
    assert loss_tokens({"loss_tokens": 0}, ["head"]) == {"head": 1.0}


def test_a_batch_that_says_no_count_is_refused():
    with pytest.raises(BatchError, match=r"a batch needs 'loss_tokens', .* module 'head' has no input 'loss_weights'"):
        loss_tokens({"head": {"labels": np.zeros(3)}}, ["head"])
