"""Smaller vocabularies: low-rank tables, trimmed ones, and phrases as single tokens."""
