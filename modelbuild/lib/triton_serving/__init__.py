"""What runs inside Triton's Python backend: copied as it is into a model's version folder, as the package `serving`.

Nothing here imports modelbuild. It needs Python 3.10 or newer, numpy (1.26 or 2), and `tokenizers` for texts or
`onnxruntime` for graphs; `triton_python_backend_utils` is there in the server only.
"""
