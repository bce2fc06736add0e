"""One model of a table, a renderer a file; the answer's names, digits and chart. Needs no torch."""
