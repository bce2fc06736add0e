"""One model of a table, and a renderer a file: terminal, Markdown, CSV, LaTeX. Needs no torch."""
