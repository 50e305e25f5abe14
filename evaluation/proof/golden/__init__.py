"""Goldens: numbers made by a method's published code on a tiny model, and whether ours are the same."""
