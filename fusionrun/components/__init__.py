"""Saved parts of models: stored one by one, loaded, put together again, exported."""
