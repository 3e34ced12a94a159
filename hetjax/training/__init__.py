"""The training run behind train.py: `prepare` makes its parts, `loop` steps, `report` prints and logs."""
