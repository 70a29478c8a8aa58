"""Generators of the text that the embedded model and the quickstart are made from."""
