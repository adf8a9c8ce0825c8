"""``python -m dabsmix``: the same program as the console script."""

from dabsmix.cli import main

if __name__ == "__main__":
    main()
