"""The doctor: what is odd about data that can be taught; it reads examples, counts, and changes nothing."""
