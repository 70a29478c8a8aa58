"""Where a model lives while it learns. All that differs between engines hides behind engine/contract.py."""
