"""`python -m benchmarks`: see benchmarks/command.py."""

from benchmarks.command import main

if __name__ == "__main__":
    main()
