"""Settings of a run: from YAML to typed objects (`run_config`, `model_config`), and from those to the parts of a run.

`build` makes graph, optimizer and trainer, `build_loader` what loads the samples.
"""
