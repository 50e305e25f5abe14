"""What lossless.py checks with."""
