"""Facts -> numbers. Imports no torch."""
