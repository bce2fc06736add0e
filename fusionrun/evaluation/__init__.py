"""Fused against its alternatives: what they are, how they are measured and compared."""
