"""Quantized checkpoints, as ModelOpt exports them: read as plain ones, and written; FP8 by blocks is read alone.

A quantized linear map "m" has, beside "m.weight":
    FP8      weight E4M3 [out, in]; weight_scale and input_scale, float32 numbers.
    NVFP4    weight uint8 [out, in/2]; weight_scale E4M3 [out, in/16]; weight_scale_2 and input_scale, float32 numbers.
    FP8 by blocks, as DeepSeek and Qwen release it: weight E4M3 [out, in]; weight_scale_inv, by which a number of each
             block is multiplied: [out/128, in/128] rounded up, other blocks by `weight_block_size`, or one number.

Nothing is calibrated here, so an `input_scale` is that of the checkpoint which the weights came from, else 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Literal

import ml_dtypes
import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.tensor_files.fp8 import (
    E4M3,
    dequantize_fp8,
    dequantize_fp8_blocks,
    fp8_scale,
    quantize_fp8,
)
from hetjax.models.huggingface.tensor_files.nvfp4 import BLOCK, dequantize_nvfp4, nvfp4_scale, quantize_nvfp4
from hetjax.models.huggingface.tensor_files.tensors import CheckpointTensors, TensorInfo, listed
from hetjax.models.json_values import Json, JsonObject

Form = Literal["fp8", "nvfp4"]
"""How a weight is written."""
ReadForm = Literal["fp8", "nvfp4", "fp8_blocks"]
"""How a weight is found to be quantized."""

SCALES: dict[ReadForm, tuple[str, ...]] = {
    "fp8": (".weight_scale",),
    "nvfp4": (".weight_scale", ".weight_scale_2"),
    "fp8_blocks": (".weight_scale_inv",),
}
"""Ends of the names of the tensors that belong to a quantized weight."""

METHODS: dict[str, tuple[ReadForm, ...]] = {"modelopt": ("fp8", "nvfp4"), "fp8": ("fp8_blocks",)}
"""The forms of each `quant_method` of config.json that is read."""

ACTIVATION_SCALES = (".input_scale", ".k_scale", ".v_scale", ".activation_scale")
"""Ends of names of what was calibrated, which conversions keep as it is."""

FLOATS = tuple(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))
"""Dtypes whose numbers are weights as they are."""

_FLOAT32 = np.dtype(np.float32)
_UINT8 = np.dtype(np.uint8)


class PlainTensors(Mapping[str, np.ndarray]):
    """A checkpoint's tensors with quantized weights dequantized when they are read; scales of weights are not listed.

    Args:
        tensors: the checkpoint as it is.
        config: `quantization_config` of config.json, or {}.
        dtype: of the dequantized weights.

    Raises ModelError for a quantized weight without its scales, or of another form than the config says.
    """

    def __init__(
        self,
        tensors: CheckpointTensors,
        config: Mapping[str, Json],
        dtype: np.dtype = np.dtype(ml_dtypes.bfloat16),
    ):
        self._tensors, self._dtype = tensors, dtype
        check_method(config)
        self.forms = {name: form for name in tensors if (form := _form(tensors, name)) is not None}
        _check_config(self.forms, config)
        self._blocks = {
            name: _block(tensors, name, config) for name, form in self.forms.items() if form == "fp8_blocks"
        }
        # A scale beside a weight that no form takes stays listed, so that nobody leaves it out in silence.
        scales = {name.removesuffix(".weight") + end for name, form in self.forms.items() for end in SCALES[form]}
        self._names = dict.fromkeys(name for name in tensors if name not in scales)
        # A tensor is asked for once for each of its parts; dequantized, it is worth keeping until the next.
        self._dequantized = functools.lru_cache(maxsize=1)(self._dequantize)

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype of a tensor, once dequantized. Raises KeyError for an unknown one."""
        info = self._tensors.info(name)
        if name not in self.forms:
            return info
        if self.forms[name] != "nvfp4":
            return TensorInfo(info.shape, self._dtype)
        out, half = info.shape
        return TensorInfo((out, 2 * half), self._dtype)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._dequantized(name) if name in self.forms else self._tensors[name]

    def _dequantize(self, name: str) -> np.ndarray:
        module = name.removesuffix(".weight")
        weight, scale = self._tensors[name], self._tensors[module + SCALES[self.forms[name]][0]]
        if self.forms[name] == "fp8_blocks":
            block = self._blocks[name]
            return dequantize_fp8_blocks(weight, scale.reshape(_grid(weight.shape, block)), block, self._dtype)
        if self.forms[name] == "fp8":
            return dequantize_fp8(weight, scale.astype(np.float32).reshape(()), self._dtype)
        return dequantize_nvfp4(weight, scale, self._tensors[f"{module}.weight_scale_2"].reshape(()), self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def quantized_infos(name: str, info: TensorInfo, form: Form) -> dict[str, TensorInfo]:
    """Return the tensors that a weight [out, in] called `name` is written as."""
    module = name.removesuffix(".weight")
    (out, width), number = info.shape, TensorInfo((), _FLOAT32)
    if form == "fp8":
        scales = {f"{module}.weight_scale": number}
        return {name: TensorInfo((out, width), E4M3), **scales, f"{module}.input_scale": number}
    return {
        name: TensorInfo((out, width // 2), _UINT8),
        f"{module}.weight_scale": TensorInfo((out, width // BLOCK), E4M3),
        f"{module}.weight_scale_2": number,
        f"{module}.input_scale": number,
    }


def quantized_tensors(name: str, weight: np.ndarray, form: Form, input_scale: np.ndarray | None) -> JsonObject:
    """Return a weight [out, in] as the tensors of `quantized_infos`. Raises ModelError where the form does not fit."""
    module = name.removesuffix(".weight")
    input_scale = np.asarray(1.0 if input_scale is None else input_scale, np.float32).reshape(())
    if form == "fp8":
        scale = fp8_scale(weight)
        return {
            name: quantize_fp8(weight, scale),
            f"{module}.weight_scale": scale,
            f"{module}.input_scale": input_scale,
        }
    scale = nvfp4_scale(weight)
    try:
        packed, scales = quantize_nvfp4(weight, scale)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    return {
        name: packed,
        f"{module}.weight_scale": scales,
        f"{module}.weight_scale_2": scale,
        f"{module}.input_scale": input_scale,
    }


def check_method(config: Mapping[str, Json]) -> None:
    """Raise ModelError for a `quantization_config` whose weights are in a form that is not read."""
    method = config.get("quant_method", "modelopt")
    if method not in METHODS:
        raise ModelError(
            f"quantization_config.quant_method is {method!r}; only {' and '.join(map(repr, METHODS))} are read; give "
            "the checkpoint that it was quantized from, or write it dequantized by the library that it is of"
        )


def _form(tensors: CheckpointTensors, name: str) -> ReadForm | None:
    """How a tensor is quantized, by its dtype and the scales beside it."""
    if not name.endswith(".weight"):
        return None
    info, module = tensors.info(name), name.removesuffix(".weight")
    form: ReadForm | None = {E4M3: "fp8", _UINT8: "nvfp4"}.get(info.dtype)
    if form is None:
        return None
    if form == "fp8" and f"{module}.weight_scale_inv" in tensors and len(info.shape) == 2:
        return "fp8_blocks"
    wanted = {".weight_scale": ((), (1,))} if form == "fp8" else {}
    if form == "nvfp4":
        out, half = info.shape if len(info.shape) == 2 else (0, 0)
        wanted = {".weight_scale": ((out, 2 * half // BLOCK),), ".weight_scale_2": ((), (1,))}
    for end, shapes in wanted.items():
        if module + end not in tensors:
            raise ModelError(f"{name} is {info.dtype}, but the checkpoint has no {module}{end}; fetch it again")
        if (shape := tensors.info(module + end).shape) not in shapes:
            raise ModelError(
                f"{name} of shape {info.shape}: {module}{end} has shape {shape}, where {form} has {shapes[0]}; "
                "only scales of whole tensors (FP8), of blocks (FP8, as weight_scale_inv) and of 16 inputs (NVFP4) "
                "are read"
            )
    return form


def _grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    return tuple(-(-size // of) for size, of in zip(shape, block, strict=True))


def _block(tensors: CheckpointTensors, name: str, config: Mapping[str, Json]) -> tuple[int, int]:
    """The rows and columns of a weight that share a scale: as the config says, else as scales divide the weight."""
    shape, scales = tensors.info(name).shape, f"{name}_scale_inv"
    given = tensors.info(scales)
    if given.dtype not in FLOATS:
        raise ModelError(f"{scales} is {given.dtype}; only scales of float32, float16 and bfloat16 are read")
    grid = given.shape if len(given.shape) == 2 else (1, 1) if math.prod(given.shape) == 1 else None
    said = config.get("weight_block_size")
    if said is not None and grid == _grid(shape, tuple(said)):
        return tuple(said)
    if grid is None or any(size % parts for size, parts in zip(shape, grid, strict=True)):
        raise ModelError(
            f"{name} of shape {shape}: {scales} has shape {given.shape}, which are no blocks of "
            f"weight_block_size = {said}; config.json and shards are of different checkpoints"
        )
    return shape[0] // grid[0], shape[1] // grid[1]


def _check_config(forms: Mapping[str, ReadForm], config: Mapping[str, Json]) -> None:
    """Raise ModelError where tensors are not what `quantization_config` says."""
    known = METHODS[config["quant_method"]] if "quant_method" in config else tuple(SCALES)
    if wrong := [name for name, form in forms.items() if form not in known]:
        raise ModelError(
            f"quantization_config.quant_method is {config['quant_method']!r}, but {listed(wrong)} of the checkpoint is "
            f"{forms[wrong[0]]}; config.json and shards are of different checkpoints"
        )
    listed_layers = config.get("quantized_layers")
    if listed_layers is None:
        return
    said = {f"{module}.weight": layer["quant_algo"].lower() for module, layer in listed_layers.items()}
    wrong = sorted(name for name in said.keys() | forms.keys() if said.get(name) != forms.get(name))
    if wrong:
        first = wrong[0]
        raise ModelError(
            f"quantization_config.quantized_layers does not fit the tensors of {listed(wrong)}: {first} is "
            f"{forms.get(first, 'not quantized')}, the config says {said.get(first, 'not quantized')}; "
            "config.json and shards are of different checkpoints"
        )
