"""Losses and answers on data that was kept back."""
