# The harness as docker-compose.yml runs it: mock, Locust master and Locust workers are one image.
FROM python:3.12.11-slim-bookworm

RUN useradd --create-home --uid 1000 harness \
    && install --directory --owner=harness /app /app/runs
WORKDIR /app

# Dependencies first: they change less often than the code.
COPY constraints.txt ./
RUN pip install --no-cache-dir --require-hashes -r constraints.txt

COPY pyproject.toml README.md LICENSE ./
COPY harness ./harness
COPY locustfiles ./locustfiles
COPY scenarios ./scenarios
RUN pip install --no-cache-dir --no-deps .

USER harness
EXPOSE 8000 8089
CMD ["harness", "mock", "--host", "0.0.0.0", "--port", "8000", "--profile", "demo"]
