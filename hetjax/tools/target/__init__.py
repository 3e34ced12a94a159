"""Runs checked against devices that are not there: `train.py --target`, and `hetjax fit` for several."""
