"""Benchmarks: what fulltune costs beside what a user would pick instead, measured on one machine in one go."""
