import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.data.rows.axes import coordinates
from hetjax.models import ModelError
from tests.harness.huggingface.qwen3_vl_model import coordinates as by_hand
from tests.harness.huggingface.qwen3_vl_model import given
from tests.harness.models.qwen3_vl_cases import CONFIGS, PORTS, build, make_batch, vision_inputs
from tests.harness.models.tiny_models import call, relative_error

VISION, LLM = CONFIGS["qwen3_vl"].values()


def test_stages_of_the_encoder_make_the_depths_of_their_layers():
    model, inputs = build()["vision"], vision_inputs()
    whole = call(model, **inputs)
    assert list(model.output_ports) == ["tokens", "deepstack_0", "deepstack_1"]
    hidden, made = {}, {}
    for index, ports in enumerate((("deepstack_0",), ("deepstack_1",), ("tokens",))):
        part = model.stage(index, 3, [1, 2, 1])
        assert set(part.output_ports) == set(ports)
        out = call(part, **{port: each for port, each in {**inputs, **hidden}.items() if port in part.input_ports})
        hidden = {"hidden": out.pop("hidden", None)}
        assert out.keys() == set(ports)
        made |= out
    for port, each in whole.items():
        assert relative_error(made[port], each) < 1e-6, port


def test_an_image_alone_equals_the_same_beside_others():
    model, inputs = build()["vision"], vision_inputs()
    together = call(model, **inputs)
    alone = call(model, **{port: each[1:, :4] for port, each in inputs.items() if not port.startswith("video_")})
    for port, each in alone.items():
        assert relative_error(together[port][1, :1], each[0, :1]) < 1e-6, port
    with pytest.raises(ModelError, match="there are neither images nor videos"):
        model()
    with pytest.raises(ModelError, match=r"give \[batch, N, 48\]"):
        model(**{**inputs, "patches": inputs["patches"][..., :12]})


def fused(modules, batch):
    seen = call(modules["vision"], **batch["vision"])
    return {**batch["llm"], **{PORTS[port]: each for port, each in seen.items()}}


def test_stages_of_the_language_model_add_the_depths_of_their_layers():
    modules, batch = build(), make_batch(2, 28)
    inputs = jax.tree.map(jnp.asarray, fused(modules, batch))
    llm, hidden = modules["llm"], {}
    whole = call(llm, **inputs)["loss"]
    for index, depths in enumerate((["deepstack_0"], ["deepstack_1"], [])):
        part = llm.stage(index, 3)
        ports = part.input_ports
        assert [port for port in ports if port.startswith("deepstack")] == depths
        assert ("image_positions" in ports) == bool(depths) and "coordinates" in part.optional_ports
        hidden = call(part, **{port: each for port, each in {**inputs, **hidden}.items() if port in ports})
    assert relative_error(hidden["loss"], whole) < 1e-6
    without = {port: each for port, each in inputs.items() if not port.startswith("deepstack")}
    assert relative_error(call(llm, **without)["loss"], whole) > 1e-4
    with pytest.raises(ModelError, match="give all of deepstack_0, deepstack_1 and image_positions, or none"):
        call(llm, **without, deepstack_0=inputs["deepstack_0"])


def test_decoding_goes_on_behind_images_where_the_prompt_ended():
    modules, batch = build(), make_batch(2, 28)
    inputs, llm = fused(modules, batch), modules["llm"]
    media = {port: each for port, each in inputs.items() if port.startswith(("image_", "deepstack"))}
    tokens, places, prompt = inputs["tokens"], inputs["coordinates"], 25
    rows = np.tile(np.arange(28), (2, 1))
    decode = jax.jit(lambda cache, **given: llm.decode(cache, **given))
    want, _ = decode(llm.init_cache(2, 28, jnp.float32), positions=rows, tokens=tokens, coordinates=places, **media)
    cache = llm.init_cache(2, 28, jnp.float32)
    for start, stop in ((0, prompt), (prompt, 26), (26, 27), (27, 28)):
        now = slice(start, stop)
        more = {**media, "coordinates": places[:, now]} if start == 0 else {}
        got, cache = decode(cache, positions=rows[:, now], tokens=tokens[:, now], **more)
    assert relative_error(got["logits"], want["logits"]) < 1e-5
    assert cache.shift.tolist() == [-3, 0]  # six tokens of 2 x 3 take three positions; those of one line as many


def test_text_alone_counts_as_a_qwen3_does():
    llm = build()["llm"]
    batch = {
        port: each for port, each in make_batch(2, 28)["llm"].items() if port in ("tokens", "labels", "loss_weights")
    }
    plain = np.repeat(np.tile(np.arange(28, dtype=np.int32), (2, 1))[..., None], 3, axis=2)
    assert relative_error(call(llm, **batch)["loss"], call(llm, **batch, coordinates=plain)["loss"]) < 1e-7


def test_coordinates_count_rows_and_columns_of_images():
    want = by_hand(given()["tokens"])
    np.testing.assert_array_equal(coordinates(25, [(3, (2, 3))]), want[0])
    np.testing.assert_array_equal(coordinates(25, [(11, (1, 2)), (2, (1, 1)), (6, (1, 2))]), want[1])


@pytest.mark.parametrize(
    ("config", "change", "told"),
    [
        (VISION, {"width": 12}, "width / heads = 12 / 2 must be a multiple of 4"),
        (VISION, {"deepstack": (0, 4)}, r"deepstack = \(0, 4\) must be three or fewer of the layers 0 to 3, in order"),
        (LLM, {"rope_sections": (0, 4, 4)}, "rows and columns have a third of the channel pairs at most"),
        (LLM, {"deepstack": 4}, "deepstack = 4 must be 0 to 3, and no more than layers = 3"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config, change, told):
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(config, **change)
