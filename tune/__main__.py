"""`python -m tune` is the `preftune` command."""

from tune.cli import main

main()
