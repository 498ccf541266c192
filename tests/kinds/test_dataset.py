"""Datasets: texts and tensors as model inputs, how they are batched, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from modelbuild import kind
from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import samples
from tests import models
from tests.kinds.run import Heard, run_kind

TEXTS = list(models.SENTENCES)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "sentences.jsonl", [{"id": i, "text": t} for i, t in enumerate(TEXTS)])


def build(
    tmp_path: Path, file: Path, tokenizer: Artifact | None, *, heard: Heard | None = None, **options: Any
) -> Artifact:
    inputs = {"tokenizer": tokenizer} if tokenizer is not None else {}
    folder = tmp_path / f"build{len(list(tmp_path.glob('build*')))}"
    return run_kind("dataset", folder, options, inputs=inputs, sources={"path": file}, heard=heard)


def refusal(tmp_path: Path, file: Path, tokenizer: Artifact | None, **options: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        build(tmp_path, file, tokenizer, **options)
    (found,) = caught.value.problems
    return found


def rows_of(made: Artifact) -> list[list[int]]:
    """Every sample's token ids, without padding."""
    batches = samples.of(made).batches(1)
    return [b["input_ids"][0].tolist() for b in batches]


def every_file(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def options(**values: Any) -> Any:
    return msgspec.convert(values, kind.load("dataset").Spec)


class TestTexts:
    def test_are_tokenized_by_the_artifact_s_tokenizer(
        self, tmp_path: Path, sentences: Path, tokenizer_artifact: Artifact
    ) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(tokenizer_artifact.path / "tokenizer.json"))

        made = build(tmp_path, sentences, tokenizer_artifact)

        assert rows_of(made) == [tokenizer.encode(t).ids for t in TEXTS]
        assert made.descriptor.format == "dataset"
        assert made.descriptor.settings["samples"] == len(TEXTS)
        assert made.descriptor.settings["max_length"] == 32
        assert made.descriptor.settings["vocab_size"] == models.VOCAB_SIZE
        assert [t.name for t in made.descriptor.model().outputs] == ["input_ids", "attention_mask", "token_type_ids"]

    def test_are_the_same_from_every_format(
        self, tmp_path: Path, sentences: Path, tokenizer_artifact: Artifact
    ) -> None:
        (tmp_path / "a.txt").write_text("".join(f"{t}\r\n" for t in TEXTS))
        (tmp_path / "a.csv").write_text("sentence\n" + "".join(f'"{t}"\n' for t in TEXTS))
        (tmp_path / "bom.data").write_bytes(b"\xef\xbb\xbf" + sentences.read_bytes())
        expected = rows_of(build(tmp_path, sentences, tokenizer_artifact))
        for name, chosen in (("a.txt", {}), ("a.csv", {}), ("bom.data", {"format": "jsonl"})):
            assert rows_of(build(tmp_path, tmp_path / name, tokenizer_artifact, **chosen)) == expected

    def test_are_cut_to_max_length(self, tmp_path: Path, sentences: Path, tokenizer_artifact: Artifact) -> None:
        heard = Heard()
        made = build(tmp_path, sentences, tokenizer_artifact, max_length=8, heard=heard)
        assert {len(row) for row in rows_of(made)} == {8}
        assert all(row[-1] == models.SPECIAL.index("[SEP]") for row in rows_of(made))
        assert heard.logs[-1].endswith("4 cut to 8")

    def test_of_two_columns_are_pairs(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        file = jsonl(tmp_path / "pairs.jsonl", [{"premise": "the water", "hypothesis": "oil", "label": 2}] * 2)

        made = build(tmp_path, file, tokenizer_artifact, columns=["premise", "hypothesis"], label="label")

        (batch,) = samples.of(made).batches(2)
        assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]] * 2
        assert samples.of(made).labels() == [2, 2]

    def test_that_are_blank_are_left_out_and_counted(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        file = jsonl(tmp_path / "a.jsonl", [{"text": t} for t in ("the", " ", None, "", "of")])
        heard = Heard()
        made = build(tmp_path, file, tokenizer_artifact, heard=heard)
        assert made.descriptor.settings["samples"] == 2
        assert "left out 3 blank rows" in heard.logs

    def test_limit_takes_the_first(self, tmp_path: Path, sentences: Path, tokenizer_artifact: Artifact) -> None:
        whole = rows_of(build(tmp_path, sentences, tokenizer_artifact))
        assert rows_of(build(tmp_path, sentences, tokenizer_artifact, limit=2)) == whole[:2]

    def test_a_limit_beyond_the_end_is_said(
        self, tmp_path: Path, sentences: Path, tokenizer_artifact: Artifact
    ) -> None:
        heard = Heard()
        build(tmp_path, sentences, tokenizer_artifact, limit=99, heard=heard)
        assert "`limit: 99` is more than there is: 4 samples" in heard.logs

    def test_seed_shuffles_before_the_limit(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        texts = ["", *(" ".join(models.WORDS[i : i + 3]) for i in range(50))]
        file = jsonl(tmp_path / "a.jsonl", [{"text": t, "n": i} for i, t in enumerate(texts)])
        whole = rows_of(build(tmp_path, file, tokenizer_artifact))

        drawn = build(tmp_path, file, tokenizer_artifact, limit=10, seed=3, label="n")

        labels = samples.of(drawn).labels()
        assert labels is not None
        assert rows_of(drawn) == [whole[n - 1] for n in labels]
        assert labels != sorted(labels)
        assert labels != samples.of(build(tmp_path, file, tokenizer_artifact, limit=10, seed=4, label="n")).labels()

    def test_give_the_same_bytes_twice(self, tmp_path: Path, sentences: Path, tokenizer_artifact: Artifact) -> None:
        first, second = (build(tmp_path, sentences, tokenizer_artifact, seed=1) for _ in range(2))
        assert every_file(first.path) == every_file(second.path)

    def test_progress_is_told(self, tmp_path: Path, sentences: Path, tokenizer_artifact: Artifact) -> None:
        heard = Heard()
        build(tmp_path, sentences, tokenizer_artifact, heard=heard)
        assert heard.progress[-1].what == "tokenize"
        assert heard.progress[-1].done == heard.progress[-1].total == sentences.stat().st_size

    @pytest.mark.torch
    def test_of_the_real_minilm_equal_transformers_own(self, tmp_path: Path, minilm: Artifact) -> None:
        transformers = pytest.importorskip("transformers")
        texts = ["Héllo, WORLD! 你好", "naïve café's 3.14 - ok?", "x" * 300, "a\u200bb\tc"]
        file = jsonl(tmp_path / "a.jsonl", [{"text": t} for t in texts])

        (batch,) = samples.of(build(tmp_path, file, minilm)).batches(8)

        tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.path)
        expected = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="np")
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name], values)


class TestBatches:
    @pytest.fixture
    def made(self, tmp_path: Path, sentences: Path, tokenizer_artifact: Artifact) -> samples.Samples:
        return samples.of(build(tmp_path, sentences, tokenizer_artifact))

    def test_are_padded_to_their_longest_and_masked(self, made: samples.Samples) -> None:
        first, second = made.batches(2)
        assert first["input_ids"].dtype == np.int64
        assert first["input_ids"].shape == (2, int(made.lengths[:2].max()))
        assert second["attention_mask"].sum(axis=1).tolist() == made.lengths[2:].tolist()
        assert (second["input_ids"][second["attention_mask"] == 0] == 0).all()

    def test_sorted_by_length_hold_the_same_samples(self, made: samples.Samples) -> None:
        lengths = [int(b["attention_mask"].sum()) for b in made.batches(1, sort_by_length=True)]
        assert lengths == sorted(made.lengths.tolist())

    def test_are_padded_or_cut_to_a_given_length(self, made: samples.Samples) -> None:
        assert {b["input_ids"].shape for b in made.batches(4, pad=40)} == {(4, 40)}
        assert {b["input_ids"].shape for b in made.batches(4, pad=5)} == {(4, 5)}

    def test_hold_the_inputs_asked_for_in_the_types_asked_for(self, made: samples.Samples) -> None:
        batch = next(made.batches(1, names=["attention_mask"], dtypes={"attention_mask": "int32"}))
        assert {n: v.dtype.name for n, v in batch.items()} == {"attention_mask": "int32"}

    def test_an_input_the_samples_lack_is_a_problem(self, made: samples.Samples) -> None:
        with pytest.raises(ProblemError, match="the dataset has no input `pixel_values`"):
            next(made.batches(1, names=["pixel_values"]))

    def test_padding_max_length_pads_every_batch_alike(
        self, tmp_path: Path, sentences: Path, tokenizer_artifact: Artifact
    ) -> None:
        made = build(tmp_path, sentences, tokenizer_artifact, padding="max_length", max_length=20)
        assert {b["input_ids"].shape[1] for b in samples.of(made).batches(1)} == {20}

    def test_pad_on_the_left_where_the_tokenizer_does(self, tmp_path: Path, sentences: Path) -> None:
        from modelbuild import artifact

        folder = tmp_path / "left"
        models.write_tokenizer(folder)
        (folder / "tokenizer_config.json").write_text('{"padding_side": "left", "pad_token": "[MASK]"}')
        left = artifact.Descriptor(format="safetensors", tokenizer=("tokenizer.json",))
        artifact.write(folder, left)

        (batch,) = samples.of(build(tmp_path, sentences, artifact.read(folder))).batches(4)

        shortest = int(batch["attention_mask"].sum(axis=1).argmin())
        assert batch["attention_mask"][shortest, 0] == 0
        assert batch["input_ids"][shortest, 0] == models.SPECIAL.index("[MASK]")
        assert batch["attention_mask"][:, -1].tolist() == [1, 1, 1, 1]


class TestTensors:
    def test_are_inputs_by_name(self, tmp_path: Path) -> None:
        pixels = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        np.savez_compressed(tmp_path / "a.npz", pixel_values=pixels, scale=np.arange(4))

        made = build(tmp_path, tmp_path / "a.npz", None)

        opened = samples.of(made)
        assert len(opened) == 4
        assert set(opened.inputs) == {"pixel_values", "scale"}
        first, _ = opened.batches(3)
        np.testing.assert_array_equal(first["pixel_values"], pixels[:3])
        shapes = {t.name: (t.dtype, t.shape) for t in made.descriptor.model().outputs}
        assert shapes == {"pixel_values": ("float32", ("batch", 2, 3)), "scale": ("int64", ("batch",))}

    def test_are_limited_and_shuffled_together(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.arange(600), y=np.asfortranarray(np.arange(1200).reshape(600, 2)))
        made = build(tmp_path, tmp_path / "a.npz", None, limit=300, seed=1)
        (batch,) = samples.of(made).batches(999)
        assert len(set(batch["x"].tolist())) == 300
        np.testing.assert_array_equal(batch["y"][:, 0], batch["x"] * 2)

    def test_names_never_become_paths(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **{"../../evil": np.zeros(2)})
        made = build(tmp_path, tmp_path / "a.npz", None)
        assert samples.of(made).inputs == ("../../evil",)
        assert not list(tmp_path.rglob("evil*"))

    @pytest.mark.parametrize(
        ("arrays", "title"),
        [
            ({"a": np.zeros(2), "b": np.zeros(3)}, "the arrays of `a.npz` differ in their number of samples"),
            ({"a": np.float32(1)}, "the array `a` of `a.npz` has no axis"),
            (
                {"a": np.array([[1], [1, 2]], dtype=object)},
                "the array `a` of `a.npz` holds Python objects, which are never unpickled",
            ),
            ({"a": np.zeros((0, 3))}, "`a.npz` holds no samples"),
            ({}, "`a.npz` holds no samples"),
        ],
    )
    def test_refused(self, tmp_path: Path, arrays: dict[str, Any], title: str) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        assert refusal(tmp_path, tmp_path / "a.npz", None).title == title

    def test_a_file_that_is_no_npz(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").write_bytes(b"PK nothing")
        assert refusal(tmp_path, tmp_path / "a.npz", None).title == "`a.npz` is not a readable npz file"

    def test_a_damaged_npz(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "a.npz", a=np.arange(1000))
        damaged = bytearray((tmp_path / "a.npz").read_bytes())
        damaged[60:90] = b"\0" * 30
        (tmp_path / "a.npz").write_bytes(damaged)
        assert refusal(tmp_path, tmp_path / "a.npz", None).title == "`a.npz` is not a readable npz file"


class TestRefused:
    def found(self, tmp_path: Path, tokenizer: Artifact, name: str, content: str | bytes, **options: Any) -> Problem:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return refusal(tmp_path, file, tokenizer, **options)

    @pytest.mark.parametrize(("name", "text"), [("a.txt", ""), ("a.jsonl", "\n"), ("a.csv", "text\n"), ("a.csv", "")])
    @pytest.mark.parametrize("seed", [None, 1])
    def test_an_empty_dataset(
        self, tmp_path: Path, tokenizer_artifact: Artifact, name: str, text: str, seed: int | None
    ) -> None:
        assert self.found(tmp_path, tokenizer_artifact, name, text, seed=seed).title == f"`{name}` holds no texts"

    def test_nothing_but_blanks(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        found = self.found(tmp_path, tokenizer_artifact, "a.txt", "\n  \n")
        assert (found.title, found.facts) == ("`a.txt` holds no texts", (("blank rows", "2"),))

    @pytest.mark.parametrize("seed", [None, 1])
    def test_a_line_that_is_not_json(self, tmp_path: Path, tokenizer_artifact: Artifact, seed: int | None) -> None:
        found = self.found(tmp_path, tokenizer_artifact, "a.jsonl", '{"text": "the"}\n{"text": \n', seed=seed)
        assert found.title == "a line of `a.jsonl` is not a JSON object"
        assert str(found.where) == "a.jsonl:2:1"
        assert found.where is not None
        assert found.where.text == '{"text": '

    def test_a_missing_column(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        found = self.found(
            tmp_path, tokenizer_artifact, "a.jsonl", '{"sentense": "the", "id": 1}\n', columns="sentence"
        )
        assert found.title == "`a.jsonl` has no column `sentence`"
        assert found.facts == (("columns", "sentense, id"),)
        assert found.hint == "did you mean `sentense`?"

    def test_several_columns_and_none_named(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        found = self.found(tmp_path, tokenizer_artifact, "a.csv", "question,answer\na,b\n")
        assert found.title == "`a.csv` has several columns"
        assert found.facts == (("columns", "question, answer"),)

    def test_a_column_that_is_not_text(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        found = self.found(tmp_path, tokenizer_artifact, "a.jsonl", '{"text": ["the", 1]}\n')
        assert (found.title, str(found.where)) == ("the column `text` is not text", "a.jsonl:1:1")

    def test_text_that_is_not_utf8(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        found = self.found(tmp_path, tokenizer_artifact, "a.txt", b"the\ncaf\xe9\n")
        assert (found.title, str(found.where)) == ("`a.txt` is not UTF-8", "a.txt:2:1")
        assert found.facts == (("byte", "0xe9 at offset 7"),)

    @pytest.mark.parametrize("header", ["1,2", "a,a", "a,", f"{'word ' * 20},b"])
    def test_a_csv_without_header(self, tmp_path: Path, tokenizer_artifact: Artifact, header: str) -> None:
        found = self.found(tmp_path, tokenizer_artifact, "a.csv", f"{header}\nx,y\n", columns="a")
        assert found.title == "the first row of `a.csv` is not a header"

    def test_a_csv_row_of_another_width(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        found = self.found(tmp_path, tokenizer_artifact, "a.csv", "text,b\nx,y\nx,y,z\n")
        assert (found.title, str(found.where)) == ("a row of `a.csv` has 3 cells, the header 2", "a.csv:3:1")

    def test_an_unclosed_quote(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        assert self.found(tmp_path, tokenizer_artifact, "a.csv", 'text\n"x\n').title == (
            "`a.csv` is not a readable csv file"
        )

    def test_a_length_beyond_the_model_s(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        found = self.found(tmp_path, tokenizer_artifact, "a.txt", "the\n", max_length=65)
        assert (found.title, found.facts) == (
            "`max_length: 65` is more than the model takes",
            (("model", "64 tokens"),),
        )

    def test_a_length_with_no_room_for_text(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        found = self.found(tmp_path, tokenizer_artifact, "a.txt", "the\n", max_length=2)
        assert found.title == "`max_length: 2` leaves no room for text"

    def test_a_folder(self, tmp_path: Path, tokenizer_artifact: Artifact) -> None:
        (tmp_path / "a.txt").mkdir()
        assert refusal(tmp_path, tmp_path / "a.txt", tokenizer_artifact).title == "`a.txt` is not a file"

    def test_an_artifact_without_a_tokenizer(self, tmp_path: Path, sentences: Path) -> None:
        from modelbuild import artifact

        artifact.write(tmp_path, artifact.Descriptor(format="onnx"))
        found = refusal(tmp_path, sentences, artifact.read(tmp_path))
        assert found.title == "the artifact that `tokenizer` names has no `tokenizer.json`"
        assert found.hint == "name a target that carries a tokenizer, such as the checkpoint"

    def test_a_damaged_tokenizer(self, tmp_path: Path, sentences: Path) -> None:
        from modelbuild import artifact

        (tmp_path / "tokenizer.json").write_text("{}")
        artifact.write(tmp_path, artifact.Descriptor(format="safetensors", tokenizer=("tokenizer.json",)))
        assert refusal(tmp_path, sentences, artifact.read(tmp_path)).title == "the tokenizer does not load"

    def test_another_kind_of_artifact_as_samples(self, tokenizer_artifact: Artifact) -> None:
        with pytest.raises(ProblemError, match="the input is not a dataset"):
            samples.of(tokenizer_artifact)


class TestOptions:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"path": "a.parquet"}, "the format of `a.parquet` is not known by its suffix"),
            ({"path": "a.txt"}, "texts need a `tokenizer`"),
            ({"path": "a.npz", "tokenizer": "c"}, "`tokenizer` is for texts, and `a.npz` holds tensors"),
            ({"path": "a.npz", "padding": "max_length"}, "`padding` is for texts"),
            ({"path": "a.txt", "tokenizer": "c", "columns": []}, "`columns` takes one column, or two for pairs"),
            ({"path": "a.txt", "tokenizer": "c", "columns": ["a", "b", "c"]}, "`columns` takes one column, or two"),
            ({"path": "a.txt", "tokenizer": "c", "limit": 0}, "`limit` must be at least 1"),
            ({"path": "a.txt", "tokenizer": "c", "seed": -1}, "`seed` must not be negative"),
        ],
    )
    def test_that_do_not_fit_together(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            options(**values)

    def test_tensors_need_no_tokenizers(self) -> None:
        assert kind.used_tools(kind.load("dataset"), options(path="a.npz")) == {"numpy"}
