"""Checkpoints that transformers saved, through ours and back: every byte, and the logits on both sides."""

import copy
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from hetjax.checkpoint.saved_weights import SavedWeights
from hetjax.cli import main
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.families import find_family
from tests.harness.huggingface.folders import LLAMA, QWEN3_MOE
from tests.harness.huggingface.omni_configs import TINY as OMNI
from tests.harness.models.arrays import with_arrays

pytestmark = pytest.mark.live


def language_model(hf):
    kind = transformers.AutoConfig.for_model(**{**copy.deepcopy(hf), "dtype": "float32", "torch_dtype": "float32"})
    return transformers.AutoModelForCausalLM.from_config(kind, attn_implementation="eager")


def omni_model(hf):
    folder = "transformers.models.nemotron_h_omni"
    config = pytest.importorskip(f"{folder}.configuration_nemotron_h_omni")
    modeling = pytest.importorskip(f"{folder}.modeling_nemotron_h_omni")
    hf = {key: value for key, value in copy.deepcopy(hf).items() if key not in ("model_type", "dtype")}
    return modeling.NemotronH_Omni_Reasoning_V3(config.NemotronH_Omni_Reasoning_V3_Config(**hf, video_token_id=19))


MODELS = {
    "llama": (LLAMA, language_model),
    "qwen3 with experts": (QWEN3_MOE, language_model),
    "nemotron_h": (OMNI["text_config"], language_model),
    "omni": (OMNI, omni_model),
}


def randomize(model) -> None:
    """Off what initializations leave at 0 or 1; a layer scale stays, which the released model lacks."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and "lambda1" not in name and "inv_freq" not in name:
                tensor += 0.1 * torch.rand(tensor.shape, generator=generator)


def our_logits(folder, tokens: np.ndarray) -> np.ndarray:
    """Those of the last row, from the arrays of a converted checkpoint."""
    saved = SavedWeights(folder)
    hf = json.loads((saved.folder / "huggingface" / "config.json").read_text())
    family = find_family(hf)
    configs = family.read_config(hf)
    if getattr(configs["llm"], "mamba", None) is not None:
        # transformers has a least step of time in its prefill.
        mamba = dataclasses.replace(configs["llm"].mamba, min_dt=0.001)
        configs["llm"] = dataclasses.replace(configs["llm"], mamba=mamba)
    shell = family.module("llm", configs)
    arrays = {
        path: jnp.asarray(saved.read("llm", path, tuple(slice(0, size) for size in info.shape)))
        for path, info in saved.infos("llm").items()
    }
    rest = {
        path: jnp.zeros(each.shape, each.dtype) for path, each in arrays_by_path(shell).items() if path not in arrays
    }
    model = with_arrays(shell, {**arrays, **rest})
    cache = model.init_cache(*tokens.shape, jnp.float32)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return np.asarray(model.decode(cache, positions=positions, tokens=tokens)[0]["logits"])


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_saved_comes_back_and_answers_as_ours_does(tmp_path, name):
    hf, build = MODELS[name]
    torch.manual_seed(0)
    model = build(hf).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "hf", max_shard_size="100KB")
    main(["convert", "--from", str(tmp_path / "hf"), "--to", str(tmp_path / "ours"), "--json"])
    main(["convert", "--from", str(tmp_path / "ours"), "--to", str(tmp_path / "back"), "--json"])
    saved = {key: tensor for path in (tmp_path / "hf").glob("*.safetensors") for key, tensor in load_file(path).items()}
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == saved.keys()
    for key, tensor in saved.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
        assert found[key].tobytes() == tensor.tobytes(), key
    again, told = type(model).from_pretrained(
        tmp_path / "back", output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    tokens = np.random.default_rng(0).integers(30, 120, (2, 13))
    with torch.no_grad():
        want = again.eval()(input_ids=torch.as_tensor(tokens)).logits[:, -1].numpy()
    got = our_logits(tmp_path / "ours", tokens)
    assert np.abs(got - want).max() / np.abs(want).max() <= 2e-5
