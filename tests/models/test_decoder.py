import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models import LanguageModel, ModelError
from tests.harness.models.tiny_models import (
    BATCH,
    DECODER,
    SEQ,
    build_decoder,
    call,
    cast,
    decoder_batch,
    flat,
    relative_error,
)


def decoder_in_numpy(w, batch, config):
    """Logits of the decoder, one sample, head and row at a time."""
    out = []
    half, angle = config.head_dim // 2, np.arange(SEQ)[:, None]
    turn = np.exp(1j * angle * config.rope_theta ** (-np.arange(half) / half))

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale

    def rotated(x):
        pairs = (x[:, :half] + 1j * x[:, half:]) * turn
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    for b in range(BATCH):
        x = w["embedding",][batch["tokens"][b]]
        for token, position in zip(batch["image_tokens"][b], batch["image_positions"][b], strict=True):
            if position < SEQ:
                x[position] = token
        for i in range(config.layers):
            block = {path[2:]: weight[i] for path, weight in w.items() if path[0] == "layers"}
            normed = norm(x, block["attention_norm", "scale"])
            attended = np.zeros_like(x)
            for h in range(config.heads):
                g = h // (config.heads // config.kv_heads)
                query = rotated(normed @ block["attention", "query", "kernel"][:, h])
                key = rotated(normed @ block["attention", "key", "kernel"][:, g])
                scores = np.where(np.tri(SEQ) > 0, query @ key.T / np.sqrt(config.head_dim), -np.inf)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                value = normed @ block["attention", "value", "kernel"][:, g]
                attended += weights / weights.sum(-1, keepdims=True) @ value @ block["attention", "output", "kernel"][h]
            x = x + attended
            normed = norm(x, block["mlp_norm", "scale"])
            gate, up = normed @ block["mlp", "gate", "kernel"], normed @ block["mlp", "up", "kernel"]
            x = x + gate / (1 + np.exp(-gate)) * up @ block["mlp", "down", "kernel"]
        out.append(norm(x, w["norm", "scale"]) @ w["head", "kernel"])
    return np.stack(out)


def test_loss_equals_numpy(float64):
    model, batch = cast(build_decoder(), jnp.float64), decoder_batch(np.float64)
    logits = decoder_in_numpy(flat(nnx.state(model)), batch, DECODER)
    chosen = np.take_along_axis(logits, batch["labels"][..., None], axis=-1)[..., 0]
    want = (batch["loss_weights"] * (np.log(np.exp(logits).sum(-1)) - chosen)).sum()
    got = call(model, **batch)["loss"]
    assert got.dtype == jnp.float64
    assert relative_error(got, want) < 1e-12


def test_audio_tokens_replace_rows_as_image_tokens_do():
    model, batch = build_decoder(), decoder_batch()
    renamed = {key.replace("image", "audio"): value for key, value in batch.items()}
    np.testing.assert_array_equal(call(model, **batch)["loss"], call(model, **renamed)["loss"])
    text_only = {key: value for key, value in batch.items() if "image" not in key}
    assert relative_error(call(model, **text_only)["loss"], call(model, **batch)["loss"]) > 1e-4


def test_padding_at_the_end_changes_nothing():
    model, batch = build_decoder(), decoder_batch()
    padded = dict(batch)
    for key in ("tokens", "labels", "loss_weights"):
        padded[key] = np.concatenate([batch[key], np.zeros((BATCH, 5), batch[key].dtype)], axis=1)
    padded["image_positions"] = np.where(batch["image_positions"] < SEQ, batch["image_positions"], SEQ + 5)
    assert relative_error(call(model, **padded)["loss"], call(model, **batch)["loss"]) < 1e-6


def test_runs_in_bfloat16_near_the_float32_loss():
    model, batch = build_decoder(), decoder_batch()
    got = call(cast(model, jnp.bfloat16), **batch)["loss"]
    assert got.dtype == jnp.float32
    assert relative_error(got, call(model, **batch)["loss"]) < 1e-2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kv_heads": 3}, "heads % kv_heads = 4 % 3"),
        ({"head_dim": 7}, "head_dim % 2 = 7 % 2"),
        ({"layers": 0}, "layers = 0"),
    ],
)
def test_config_that_does_not_fit_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(DECODER, **change)


def test_calls_that_lack_an_input_or_half_of_a_pair_are_refused():
    model, batch = build_decoder(), decoder_batch()
    with pytest.raises(ModelError, match=r"LanguageModel stage 0 of 1: the call lacks labels"):
        model(**{**batch, "labels": None})
    with pytest.raises(ModelError, match="image_tokens and image_positions"):
        model(**{**batch, "image_positions": None})
    with pytest.raises(ModelError, match="does not take hidden"):
        model(**batch, hidden=batch["image_tokens"])


def test_encoder_tokens_without_a_row_each_and_tokens_that_are_no_integers_are_refused():
    model, batch = build_decoder(), decoder_batch()
    positions = batch["image_positions"]
    with pytest.raises(ModelError, match=f"{positions.shape[1]} image_tokens a sample, but 1 image_positions"):
        model(**{**batch, "image_positions": positions[:, :1]})
    with pytest.raises(ModelError, match="tokens are float32; give integers"):
        model(**{**batch, "tokens": batch["tokens"].astype(np.float32)})


def test_weights_are_float32_even_in_64_bit_mode(float64):
    weights = nnx.state(nnx.eval_shape(lambda: LanguageModel(DECODER, rngs=nnx.Rngs(0))))
    assert {weight.dtype for weight in jax.tree.leaves(weights)} == {jnp.dtype(jnp.float32)}
