"""WHAT is sent and WHEN: pure, seeded, without a clock or a socket."""
