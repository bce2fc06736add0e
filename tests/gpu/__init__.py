"""Does this program do right on this machine's GPU, and how fast? `python -m tests.gpu.accept`."""
