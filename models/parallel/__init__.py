"""The arithmetic of layers split over a mesh by `jax.shard_map`, one file a parallelism."""
