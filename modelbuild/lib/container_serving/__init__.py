"""What runs in a container: copied as it is into a context, as the package `modelserver.container_serving`.

`python -m modelserver` starts it. Nothing here imports modelbuild. It needs Python 3.11 or newer, numpy, onnxruntime,
orjson, prometheus-client, starlette, uvicorn, and `tokenizers` where it serves texts.
"""
