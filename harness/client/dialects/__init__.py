"""Per API, a pair of pure functions: encode(Request) -> HTTP request, decode(event) -> Delta."""
