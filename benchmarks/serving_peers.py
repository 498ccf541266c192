"""The same model served by others, as their documentation has it: a plain FastAPI app, and a custom MLServer runtime.

Each reads the ONNX model and `tokenizer.json` from the folder in $PEER_MODEL. The FastAPI app is
`uvicorn serving_peers:app`; MLServer loads `serving_peers.Embed`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers

FOLDER = Path(os.environ["PEER_MODEL"])
LENGTH = 256

tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
tokenizer.enable_truncation(LENGTH)
tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])


def embedded(texts: list[str]) -> Any:
    """Sentence embeddings (texts, 384): the mean of the token vectors, scaled to length 1."""
    encoded = tokenizer.encode_batch(texts)
    mask = np.array([e.attention_mask for e in encoded])
    fed = {"input_ids": np.array([e.ids for e in encoded]), "attention_mask": mask, "token_type_ids": mask * 0}
    (vectors,) = session.run(["last_hidden_state"], fed)
    weight = mask[..., None].astype(np.float32)
    pooled = (vectors * weight).sum(axis=1) / weight.sum(axis=1)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


try:
    import fastapi
    import pydantic

    app = fastapi.FastAPI()

    class Texts(pydantic.BaseModel):
        texts: list[str]

    @app.post("/embed")
    def embed(given: Texts) -> dict[str, Any]:
        return {"embedding": embedded(given.texts).tolist()}

    @app.get("/v2/health/ready")
    def ready() -> dict[str, Any]:
        return {}

except ImportError:
    pass

try:
    import mlserver
    from mlserver.codecs import NumpyCodec, StringCodec

    class Embed(mlserver.MLModel):
        async def load(self) -> bool:
            return True

        async def predict(self, payload: Any) -> Any:
            texts = StringCodec.decode_input(payload.inputs[0])
            output = NumpyCodec.encode_output("embedding", embedded(list(texts)))
            return mlserver.types.InferenceResponse(model_name=self.name, outputs=[output])

except ImportError:
    pass
