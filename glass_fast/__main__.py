"""``python -m glass_fast`` is the same as the ``glass-fast`` command."""

from glass_fast.cli import main

if __name__ == "__main__":
    main()
