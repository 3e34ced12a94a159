"""Which modules the released quantized checkpoints quantize, and what config.json says of it.

FP8 release: every linear map of the language model but the router and the head. NVFP4 release: routed experts in NVFP4;
Mamba's two projections, shared experts and attention's output in FP8; the rest as it is, queries, keys and values too.
Encoders and projectors are never quantized. Keys and values are cached in FP8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.tensor_files.quantized import Form
from hetjax.models.json_values import Json, JsonObject

_LINEAR = r"\.(in|out|q|k|v|o|gate|up|down)_proj\.weight$"
_ROUTED = re.compile(r"\.experts\.\d+\.(gate|up|down)_proj\.weight$")
_FP8_IN_NVFP4 = re.compile(r"\.mixer\.(in|out)_proj\.weight$|\.shared_experts?\.\w+_proj\.weight$|\.o_proj\.weight$")
_ALL = re.compile(_LINEAR)

_FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}
_FLOAT4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}


def quantized_forms(names: Iterable[str], form: Form, language_prefix: str) -> dict[str, Form]:
    """Return the form of every weight to quantize, by name; the language model's names begin with `language_prefix`.

    Raises ModelError where no weight takes the form asked for.
    """
    within = [name for name in names if name.startswith(language_prefix)]
    if form == "fp8":
        forms = {name: "fp8" for name in within if _ALL.search(name)}
    else:
        forms = {name: "nvfp4" for name in within if _ROUTED.search(name)}
        if forms:
            forms |= {name: "fp8" for name in within if _FP8_IN_NVFP4.search(name)}
    if not forms:
        what = "routed experts, the only weights that go to NVFP4; use fp8" if form == "nvfp4" else "linear maps"
        raise ModelError(f"the language model has no {what}")
    return forms


def quantization_config(forms: Mapping[str, Form], names: Iterable[str], before: Mapping[str, Json]) -> JsonObject:
    """Return the `quantization_config` of config.json for weights in these forms, among all `names`.

    The scheme of the cache is that of the config `before`, where the checkpoint had one; else FP8.
    """
    config = {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "kv_cache_scheme": before.get("kv_cache_scheme", dict(_FLOAT8)),
        "producer": {"name": "hetjax"},
    }
    modules = {name.removesuffix(".weight"): form for name, form in forms.items()}
    if set(modules.values()) == {"fp8"}:
        plain = [name.removesuffix(".weight") for name in names if name.endswith(".weight") and name not in forms]
        config["config_groups"] = {"group_0": _group("fp8", ["Linear"])}
        config["ignore"] = sorted(plain)
        return config
    return {
        **config,
        "quant_algo": "MIXED_PRECISION",
        "config_groups": {
            f"group_{i}": _group(form, sorted(module for module, its in modules.items() if its == form))
            for i, form in enumerate(("fp8", "nvfp4"))
        },
        "quantized_layers": {
            module: {"quant_algo": "FP8"} if form == "fp8" else {"quant_algo": "NVFP4", "group_size": 16}
            for module, form in modules.items()
        },
        "ignore": [],
    }


def _group(form: Form, targets: list[str]) -> JsonObject:
    numbers = _FLOAT8 if form == "fp8" else _FLOAT4
    return {"input_activations": dict(numbers), "weights": dict(numbers), "targets": targets}
