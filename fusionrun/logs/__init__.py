"""Where a task's numbers go: CSV, TensorBoard, Weights & Biases, a text log."""
