"""Benchmarks of dbclone; each module measures one thing and says what it compares with."""
