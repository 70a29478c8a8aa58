"""Runs beside others': a plain PyTorch loop, and TRL's trainer. Same model, data, order and settings, same curve."""
