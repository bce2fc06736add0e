"""Everything a training step reads: data sets, splits, augmentation, resident batches."""
