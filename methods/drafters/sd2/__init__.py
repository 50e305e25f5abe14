"""SD2, Sorted Draft Speculative Decoding (Kavehzadeh et al. 2024): one trained draft with exits, left at the first that
is confident. As a chain or as a tree. Both draft greedily at any temperature, so `verify` treats their tokens as point
masses, which keeps the target's distribution."""
