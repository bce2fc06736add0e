"""One torchrun launch as one rank lives it: begin, claim tasks, train them, end."""
