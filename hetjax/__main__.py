"""Run the `hetjax` command as `python -m hetjax`."""

from hetjax.cli import main

if __name__ == "__main__":
    main()
