"""Makes parakeet.safetensors: python -m tests.golden.make_parakeet, with the extra `parity` installed.

Holds the weights of a tiny encoder and projector under their Hugging Face names, "input.*", and for both modes of the
batch norms "output.MODE", and "gradient.MODE.NAME" of the sum of output times "input.cotangent" over valid rows; of
the mode "train" also the running statistics after the call, "after.NAME".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import ParakeetEncoder, ParakeetEncoderConfig
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import NemotronH_Omni_Reasoning_V3MultiModalProjector

from hetjax.models.huggingface.parakeet import PREFIX, PROJECTOR

SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, attention_bias=False,
    convolution_bias=False, conv_kernel_size=9, subsampling_factor=8, subsampling_conv_channels=16, num_mel_bins=16,
    scale_input=False, dropout=0, dropout_positions=0, layerdrop=0, activation_dropout=0, attention_dropout=0,
)  # fmt: skip
PROJECTION = dict(input_size=32, hidden_size=48, output_size=40)
FRAMES = {"eval": (101, 47, 8), "train": (101, 101, 101)}
"""Valid frames of each clip. In training theirs takes statistics of padding too, so there is none."""


class FloatPositions(torch.nn.Module):
    """The encoder's positions in the dtype of its weights; theirs are float32 always."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, hidden):
        count = hidden.shape[1]
        positions = torch.arange(count - 1, -count, -1, dtype=hidden.dtype)
        angles = positions[:, None] / 10000 ** (torch.arange(0, self.width, 2, dtype=hidden.dtype) / self.width)
        encoded = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return encoded.expand(hidden.shape[0], -1, -1)


def tiny_model(seed: int = 0, *, dtype=torch.float32, **sizes) -> torch.nn.ModuleDict:
    """{"encoder", "projector"} with every weight and statistic random, so that none hides behind its default.

    In float64, its positions and the projector's norm are ones that do not pass through float32, as theirs do.
    """
    torch.manual_seed(seed)
    encoder = ParakeetEncoder(ParakeetEncoderConfig(**{**SIZES, **sizes}))
    projection = {**PROJECTION, "input_size": encoder.config.hidden_size}
    model = torch.nn.ModuleDict(
        {"encoder": encoder, "projector": NemotronH_Omni_Reasoning_V3MultiModalProjector(**projection)}
    )
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif "norm" in name and name.endswith("weight"):
            tensor.uniform_(0.6, 1.4)
        elif tensor.ndim == 1 or "bias_" in name:
            tensor.normal_(std=0.2)
        else:
            # Convolutions have 1 or 2 dims of taps after [out, in].
            tensor.normal_(std=tensor[0].numel() ** -0.5)
    if dtype == torch.float64:
        model = model.double()
        encoder.encode_positions = FloatPositions(encoder.config.hidden_size)
        norm = torch.nn.RMSNorm(projection["input_size"], eps=1e-5, dtype=dtype)
        norm.load_state_dict(model["projector"].layer_norm.state_dict())
        model["projector"].layer_norm = norm
    return model


def name_of(name: str) -> str:
    """The name in a released checkpoint."""
    if name.startswith("encoder."):
        return PREFIX + name.removeprefix("encoder.")
    theirs = {"layer_norm": "norm", "linear_1": "linear1", "linear_2": "linear2"}
    _, part, kind = name.split(".")
    return f"{PROJECTOR}{theirs[part]}.{kind}"


def tensors_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name_of(name): tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def inputs_of(frames, bins: int, width: int, dtype=np.float32) -> dict[str, np.ndarray]:
    """Features, zero past each clip's frames, and what the output is multiplied with."""
    random = np.random.default_rng(3)
    frames = np.asarray(frames, np.int32)
    features = random.normal(size=(len(frames), frames.max(), bins)).astype(dtype)
    features[np.arange(frames.max()) >= frames[:, None]] = 0
    valid = np.arange(tokens_of(frames.max())) < tokens_of(frames)[:, None]
    cotangent = random.normal(size=(*valid.shape, width)).astype(dtype) * valid[..., None]
    return {"features": features, "frames": frames, "cotangent": cotangent.astype(dtype)}


def tokens_of(frames):
    for _ in range(3):
        frames = (frames - 1) // 2 + 1
    return frames


def run(model: torch.nn.Module, inputs: dict[str, np.ndarray], mode: str):
    """(output, gradients by name) of the model in a mode."""
    model.train(mode == "train")
    features, frames = torch.tensor(inputs["features"]), torch.tensor(inputs["frames"])
    mask = torch.arange(features.shape[1]) < frames[:, None]
    output = model["projector"](model["encoder"](features, attention_mask=mask).last_hidden_state)
    model.zero_grad()
    (output * torch.tensor(inputs["cotangent"])).sum().backward()
    gradients = {name_of(name): weight.grad.numpy().copy() for name, weight in model.named_parameters()}
    return output.detach().numpy(), gradients


def main() -> None:
    model = tiny_model()
    tensors = tensors_of(model)
    for mode, frames in FRAMES.items():
        inputs = inputs_of(frames, SIZES["num_mel_bins"], PROJECTION["output_size"])
        output, gradients = run(model, inputs, mode)
        tensors |= {f"input.{mode}.{name}": array for name, array in inputs.items()}
        tensors |= {f"gradient.{mode}.{name}": array for name, array in gradients.items()}
        tensors[f"output.{mode}"] = output
    after = {name: tensor for name, tensor in tensors_of(model).items() if "conv.norm." in name}
    tensors |= {f"after.{name}": tensor for name, tensor in after.items() if "running" in name or "tracked" in name}
    save_file(tensors, Path(__file__).with_name("parakeet.safetensors"))


if __name__ == "__main__":
    main()
