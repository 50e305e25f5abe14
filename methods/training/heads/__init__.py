"""Training of draft heads: features of the target on disk, one file per kind of head, their trainer and export."""
