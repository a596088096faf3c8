"""A load and observability harness that tells the truth about LLM HTTP APIs.

Importing this package is cheap on purpose: no Locust (which monkey-patches the process), no numpy,
no OpenTelemetry. The map of the rooms is docs/architecture.md.
"""

__version__ = "0.1.0"
