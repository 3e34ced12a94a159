"""JAX's persistent cache of compiled programs: on where what is read from it can be trusted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jaxlib.version

from hetjax.errors import ConfigError

AUTO = "auto"


def use_compilation_cache(
    setting: str | None, device: jax.Device, environment: Mapping[str, str] = os.environ
) -> str | None:
    """Let JAX keep compiled programs in a folder and read them from there; returns the folder, None where it is off.

    Args:
        setting: "auto" for the folder that JAX_COMPILATION_CACHE_DIR names, or else hetjax/compiled in the user's cache
            folder, on GPUs and TPUs, and for none on a CPU; a folder; None for none, whatever the environment says.
        device: one that the programs are for.
        environment: the variables of the process.

    A job of several processes may share a folder. JAX keeps a program that took a second or longer to compile, and
    reads it only where the program, the devices, the flags and the versions are the same.

    Raises ConfigError for a folder on a CPU under jaxlib 0.10: there a training step that is read from the cache
    corrupts the heap (jaxlib 0.10.2: "corrupted double-linked list", in three runs of three).
    """
    is_cpu = device.platform == "cpu"
    if setting is None or (setting == AUTO and is_cpu):
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    if is_cpu and jaxlib.version.__version_info__[:2] == (0, 10):
        raise ConfigError(
            f"compilation_cache is {setting!r}, and the devices are CPUs: programs that jaxlib "
            f"{jaxlib.version.__version__} reads from the cache there corrupt memory; set it to auto or null"
        )
    folder = _default(environment) if setting == AUTO else str(Path(setting).expanduser())
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder


def _default(environment: Mapping[str, str]) -> str:
    named = environment.get("JAX_COMPILATION_CACHE_DIR")
    cache = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return named or os.path.join(cache, "hetjax", "compiled")
