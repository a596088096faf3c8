"""TELL MACHINES: the only room that imports opentelemetry."""
