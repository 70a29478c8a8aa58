"""Models of others: loading them, knowing them, asking them."""
