"""Weights -> a folder that others can load, verified."""
