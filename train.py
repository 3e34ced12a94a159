"""The trainer's front door: python train.py --config configs/digits.yaml [--key value]."""

from hetjax.cli import train_main

if __name__ == "__main__":
    train_main()
