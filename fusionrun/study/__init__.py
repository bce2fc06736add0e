"""A recipe, what follows from it (rows, tasks, queue, identity, paths), and its run context."""
