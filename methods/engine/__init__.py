"""The engine that every method runs on: one Transformer, one cache, one set of acceptance rules."""
