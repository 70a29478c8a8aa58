"""What a sweep varies, which values come next, what a shorter run is, and what can be learned from all of it."""
