"""TELL PEOPLE: pure functions from values to text, HTML and files; no statistics of its own."""
