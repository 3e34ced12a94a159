"""The tools beside the trainer, one file each; `hetjax.cli` puts them on the command line."""
