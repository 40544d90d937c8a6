"""Readers, one a format: files of labelled queries, tagged tokens and judged candidates become arrays."""
