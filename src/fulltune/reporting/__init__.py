"""What a run leaves on disk -> pages that a person reads: a report of one run, several runs side by side."""
