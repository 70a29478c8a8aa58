"""What the model will be taught, read from the prepared data and shown: in a terminal, as JSON, as a page."""
