"""The report: what `evaluate` measured as a page and as tables. Reads files, needs no torch."""
