"""Other engines as rows of the table."""
