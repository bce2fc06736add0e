"""Changed and out-of-distribution images: how the saved models answer them."""
