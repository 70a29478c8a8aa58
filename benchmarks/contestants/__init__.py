"""What is measured. Each module is run in a fresh process, and imports what it measures only once it is run there."""
