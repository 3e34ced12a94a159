"""The training run behind train.py: preparing, looping, reporting."""
