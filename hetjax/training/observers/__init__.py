"""What looks on at a run: loggers of other services, and JAX's profiler."""
