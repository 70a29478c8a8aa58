"""Several real processes that meet over gloo and train one model."""
