"""What runs say: pairing, statistics, equality, groups, changes. Judges take what answers/ reads."""
