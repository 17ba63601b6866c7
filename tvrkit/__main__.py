"""`python -m tvrkit`: the command line, also under torchrun and accelerate launch."""

from tvrkit.cli import main

main()
