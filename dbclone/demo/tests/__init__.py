"""The shop's integration tests; each starts with empty tables and asserts the rows of all eight."""
