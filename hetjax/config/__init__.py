"""Settings of a run: from YAML to typed objects (`run_config`, `model_config`), and from those to the parts of a run.

`build` makes graph, optimizer and trainer, `build_processor` the processor of the data.
"""
