"""PEARL: draft while verifying, on two ranks (Liu et al., ICLR 2025). Over any drafter of chains."""
