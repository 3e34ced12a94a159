"""The cache of compiled programs is on where it is safe, and a run says so."""

from types import SimpleNamespace

import jax
import jaxlib.version
import pytest

from hetjax.compilation import compilation_cache
from hetjax.compilation.compilation_cache import use_compilation_cache
from hetjax.errors import ConfigError

CPU, GPU = SimpleNamespace(platform="cpu"), SimpleNamespace(platform="gpu")


@pytest.fixture(autouse=True)
def as_it_was():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("setting", "device", "environment", "folder"),
    [
        ("auto", CPU, {"JAX_COMPILATION_CACHE_DIR": "/a"}, None),
        (None, GPU, {"JAX_COMPILATION_CACHE_DIR": "/a"}, None),
        ("auto", GPU, {"JAX_COMPILATION_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ("auto", GPU, {"XDG_CACHE_HOME": "/b"}, "/b/hetjax/compiled"),
        ("/c", GPU, {"JAX_COMPILATION_CACHE_DIR": "/a"}, "/c"),
    ],
)
def test_the_folder_that_programs_are_kept_in(setting, device, environment, folder):
    assert use_compilation_cache(setting, device, environment) == folder
    assert jax.config.jax_compilation_cache_dir == folder


def test_a_cpu_is_refused_where_what_is_read_corrupts_memory(monkeypatch):
    monkeypatch.setattr(compilation_cache.jaxlib.version, "__version_info__", (0, 10, 2))
    with pytest.raises(
        ConfigError, match=r"compilation_cache is '/c', and the devices are CPUs.*set it to auto or null"
    ):
        use_compilation_cache("/c", CPU)
    monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 12, 0))
    assert use_compilation_cache("/c", CPU) == "/c"
