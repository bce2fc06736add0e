"""Does a test notice? Mistakes made in the code on purpose, each of which a test must see."""
