"""python -m hetjax: the same as the console command."""

from hetjax.cli import main

if __name__ == "__main__":
    main()
