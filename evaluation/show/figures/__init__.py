"""This room draws the figures of results folders."""
