"""One file a verb: its options and its call. What a verb needs is imported when it is run."""
