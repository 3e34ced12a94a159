"""The tools beside the trainer, one command a file; `hetjax.commands` has the list."""
