"""Drafters: anything that proposes tokens for a target to verify."""
