# The same checks as CI. Without just: read the lines; each is a plain command.

python := ".venv/bin/python"

# Set up .venv with everything that the tests need
setup:
    python3 -m venv .venv
    {{python}} -m pip install -q -r constraints-dev.txt
    {{python}} -m pip install -q --no-deps -e .

# Everything that CI runs
check: lint types test

lint:
    .venv/bin/ruff format --check .
    .venv/bin/ruff check .

types:
    .venv/bin/mypy

test:
    {{python}} -m pytest

# The hot paths, timed by pytest-benchmark
bench:
    {{python}} -m pytest tests/benchmarks --benchmark-enable --benchmark-only

# The ratios of docs/benchmarks.md: this harness, plain Locust and httpx on one reference server
ratios:
    {{python}} benchmarks/ratios.py

# Pin the dependencies anew; needs uv
pin:
    uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 pyproject.toml -o constraints.txt
    uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 --extra dev pyproject.toml -c constraints.txt -o constraints-dev.txt
