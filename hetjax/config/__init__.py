"""Settings of a run: from YAML to typed objects, and from those to graph, trainer and processor."""
