"""What every room may use: ranks, seeds, plug-ins, whole files, locks, words, typed fields."""
