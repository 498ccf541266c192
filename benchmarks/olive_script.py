"""Olive's side of `chain.py`: loads the model and the calibration data, as Olive's own user scripts do.

The model has a wrapper because Olive 0.13's TorchScript export of a `HfModel` fails with transformers 5 (`forward() got
multiple values for argument 'use_cache'`), and the `dynamo` export, which works, is dearer and hides attention from
ONNX Runtime's fusions.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from olive.data.registry import Registry
from tokenizers import Tokenizer
from torch.utils.data import Dataset

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Encoder(torch.nn.Module):
    """A BERT-like model with three tensors in and one out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states [batch, sequence, width]."""
        said = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return said.last_hidden_state


def load(path: str) -> torch.nn.Module:
    """The checkpoint in the folder `path`, with the attention that fuses."""
    from transformers import AutoModel

    return Encoder(AutoModel.from_pretrained(path, attn_implementation="eager").eval()).eval()


class Tokens(Dataset):
    """Tokenized texts, each with a label that nobody reads."""

    def __init__(self, rows: list[dict[str, torch.Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
        return self.rows[index], 0


@Registry.register_dataset()
def calibration(texts: str, tokenizer: str, max_length: int) -> Tokens:
    """The texts of a jsonl file, cut to `max_length` tokens."""
    encoder = Tokenizer.from_file(tokenizer)
    encoder.no_padding()
    encoder.enable_truncation(max_length)
    lines = [json.loads(line)["text"] for line in Path(texts).read_text().splitlines()]
    encoded = encoder.encode_batch(lines)
    values = [(e.ids, e.attention_mask, e.type_ids) for e in encoded]
    return Tokens([{name: torch.tensor(v) for name, v in zip(INPUTS, row, strict=True)} for row in values])
