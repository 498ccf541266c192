"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

REQUESTS = Counter("modelserver_requests_total", "Requests to infer, by HTTP status.", ("model", "status"))
LATENCY = Histogram("modelserver_request_seconds", "From a request's head to its reply.", ("model",), buckets=SECONDS)
INFERRED = Counter("modelserver_rows_total", "Rows that were answered.", ("model",))
BATCH = Histogram("modelserver_batch_rows", "Rows of the batch that a request was in.", ("model",), buckets=ROWS)
WAITING = Gauge("modelserver_waiting_rows", "Rows that wait for a batch.", ("model",))
TOKENS = Counter("modelserver_generated_tokens_total", "Tokens that were generated.", ("model",))
TRUNCATED = Counter("modelserver_truncated_total", "Texts that were cut.", ("model",))
