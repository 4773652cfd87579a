"""`python -m zsq`, and what `torchrun -m zsq` starts."""

from zsq.cli import main

if __name__ == "__main__":
    main()
