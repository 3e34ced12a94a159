"""Three modules as one omni model, against what transformers made of the same image, video, clip and words."""

import numpy as np
from safetensors.numpy import load_file

from tests.harness.huggingface.omni_cases import hf_config, logits, loss_and_gradients, our_batch, our_modules
from tests.harness.parity.oracle import relative_error
from tests.harness.paths import GOLDEN


def test_logits_loss_and_gradients_equal_transformers():
    tensors = load_file(GOLDEN / "omni.safetensors")
    named = lambda kind: {name.removeprefix(kind): each for name, each in tensors.items() if name.startswith(kind)}  # noqa: E731
    given = {name: tensors[f"input.{name}"] for name in ("video", "tokens", "labels")}
    given |= {"images": [tensors["input.image.0"]], "clips": [tensors["input.clip.0"]]}
    modules = our_modules(hf_config(), named("weight."))
    batch = our_batch(modules, given)
    rows = np.arange(len(given["tokens"]))
    assert relative_error(logits(modules, batch, rows), tensors["output.logits"]) < 2e-5
    loss, gradients = loss_and_gradients(modules, batch)
    assert relative_error(loss, tensors["output.loss"]) < 2e-5
    wanted = named("gradient.")
    for name, gradient in gradients.items():
        if name not in wanted:
            assert ".experts." in name and not gradient.any(), name  # no row chose it
        else:
            assert relative_error(gradient, wanted[name]) < 1e-4, name
    reached = {name.split(".")[0] for name in gradients.keys() & wanted.keys()}
    assert reached == {"language_model", "vision_model", "mlp1", "sound_encoder", "sound_projection"}
