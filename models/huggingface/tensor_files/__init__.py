"""Tensors in files: safetensors read piece by piece and written in shards, plain, FP8 and NVFP4."""
