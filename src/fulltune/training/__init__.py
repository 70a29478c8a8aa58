"""The loop and what serves it. Read loop.py first."""
