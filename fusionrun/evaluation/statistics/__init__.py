"""Measures of answers and of what they cost: pure functions of tensors and numbers."""
