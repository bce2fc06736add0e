"""How one task trains: published settings, losses, optimizers, checkpoints and the loop."""
