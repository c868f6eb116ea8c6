"""``python -m unbackdoor``, where the command is not on the path."""

from unbackdoor.cli import main

if __name__ == "__main__":
    main()
