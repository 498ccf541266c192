"""What generates text in a server, run without one: equal to transformers' `generate`, whole characters, fair slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelbuild import artifact
from modelbuild.lib.triton_serving import choosing, wishes
from modelbuild.lib.triton_serving.pieces import Pieces
from modelbuild.lib.triton_serving.wishes import Wishes
from tests.serving import generators

TEXTS = ("the people of the water said it was a long day", "how", "Grüße, 世界 😀", "x" * 60, "she could not")
NEW = 24
Make = Callable[..., tuple[Path, generators.Direct]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """A tiny model's folder, and its repository run here."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, tuple[Path, generators.Direct]] = {}

    def get(
        model_type: str, generation: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Path, generators.Direct]:
        key = f"{model_type}-{generation}-{options}"
        if key not in made:
            place = folder / str(len(made))
            source = generators.write_checkpoint(place / "source", model_type, generation)
            graph = generators.exported(place, source)
            made[key] = (source, generators.Direct(generators.served(place / "served", graph, **options)))
        return made[key]

    yield get
    for _, direct in made.values():
        direct.close()


@pytest.fixture(scope="module")
def recite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., generators.Direct]]:
    """A model that recites a text, run here."""
    made: list[generators.Direct] = []

    def get(text: str, *, work: int = 0, **options: Any) -> generators.Direct:
        folder = tmp_path_factory.mktemp("recital")
        graph = generators.recital(folder / "source", text, work=work)
        made.append(generators.Direct(generators.served(folder / "served", graph, **{"name": "r", **options})))
        return made[-1]

    yield get
    for direct in made:
        direct.close()


# --- the same as transformers -----------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("model_type", generators.TASKS)
def test_greedy_texts_are_those_of_transformers_alone_and_together(make: Make, model_type: str) -> None:
    source, direct = make(model_type)

    together = direct.ask(TEXTS, max_new_tokens=NEW)
    alone = [direct.ask([text], max_new_tokens=NEW) for text in TEXTS]

    expected = [generators.expected(source, text, max_new_tokens=NEW) for text in TEXTS]
    assert together.texts == expected
    assert [heard.texts[0] for heard in alone] == expected
    assert len({letter for text in expected for letter in text}) > 2, "a model that repeats itself tells little"


@pytest.mark.torch
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "t5"])
def test_texts_that_come_while_others_run_are_no_different(make: Make, model_type: str) -> None:
    source, direct = make(model_type)
    expected = [generators.expected(source, text, max_new_tokens=30) for text in TEXTS]

    heard = []
    for text in TEXTS:
        heard.append(direct.ask([text], max_new_tokens=30))
        assert heard[-1].begun.wait(10)

    assert [h.texts[0] for h in heard] == expected


@pytest.mark.torch
@pytest.mark.parametrize("model_type", ["gpt2", "t5"])
def test_a_cache_that_stays_on_a_device_makes_no_difference(make: Make, model_type: str) -> None:
    """By the way that a GPU takes, on the device that there always is."""
    source, direct = make(model_type)
    place = direct.model.folder.parent.parent.parent
    bound = generators.Direct(artifact.read(place), device=("cpu", 0))
    expected = [generators.expected(source, text, max_new_tokens=30) for text in TEXTS]

    heard = []
    for text in TEXTS:
        heard.append(bound.ask([text], max_new_tokens=30))
        assert heard[-1].begun.wait(10)

    assert [h.texts[0] for h in heard] == expected
    bound.close()


RULES: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "ngrams": {"no_repeat_ngram_size": 2},
    "suppressed": {"suppress_tokens": list(range(60, 120)), "begin_suppress_tokens": list(range(120, 200))},
    "bad_words": {"bad_words_ids": [[i] for i in range(20, 100)] + [[150, 151], [3]]},
    "least": {"min_new_tokens": 20, "eos_token_id": list(range(3, 90))},
    "least_in_all": {"min_length": 15, "eos_token_id": list(range(3, 90))},
    "several_ends": {"eos_token_id": [3, 100, 101, 102]},
    "forced": {"forced_eos_token_id": 3, "forced_bos_token_id": 77},
}


@pytest.mark.torch
@pytest.mark.parametrize("model_type", ["gpt2", "bart"])
@pytest.mark.parametrize("name", RULES)
def test_the_checkpoints_rules_are_followed(make: Make, model_type: str, name: str) -> None:
    source, direct = make(model_type, RULES[name])

    texts = direct.ask(TEXTS[:3], max_new_tokens=NEW).texts

    assert texts == [generators.expected(source, text, max_new_tokens=NEW) for text in TEXTS[:3]]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 1.0, 0.7), (5, 1.0, 1.0), (0, 0.8, 1.3), (7, 0.6, 0.5)]
)
def test_chances_are_those_of_transformers(top_k: int, top_p: float, temperature: float) -> None:
    import torch
    from transformers.generation import logits_process

    scores = np.random.default_rng(0).standard_normal(50).astype(np.float32) * 3

    found = choosing.probabilities(scores.copy(), Wishes(temperature=temperature, top_k=top_k, top_p=top_p))

    expected = logits_process.TemperatureLogitsWarper(temperature)(None, torch.tensor(scores[None]))
    if top_k:
        expected = logits_process.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = logits_process.TopPLogitsWarper(top_p)(None, expected)
    np.testing.assert_allclose(found, expected.softmax(-1)[0].numpy(), atol=1e-6)


@pytest.mark.torch
def test_a_seed_gives_the_same_text_whoever_shares_the_batch(make: Make) -> None:
    _, direct = make("gpt2")
    asked = {"max_new_tokens": NEW, "temperature": 1.5, "seed": 7}

    alone = direct.ask(["how"], **asked).texts
    others = direct.ask(TEXTS, max_new_tokens=30)
    again = direct.ask(["how"], **asked).texts

    assert alone == again
    assert len(others.texts) == len(TEXTS)
    assert direct.ask(["how"], **{**asked, "seed": 8}).texts != alone
    several = direct.ask(["how", "how"], **asked).texts
    assert several[0] == alone[0] != several[1]


# --- pieces of text ---------------------------------------------------------------------------------------------

ODD = "Grüße, 世界 😀 👩‍👩‍👧 — it's a día.\n\tDone"


def test_pieces_are_whole_characters(recite: Callable[..., generators.Direct]) -> None:
    heard = recite(ODD).ask(["a"])

    assert heard.texts == [ODD]
    assert heard.reasons == ["eos"]
    pieces = [piece for piece in heard.pieces[0] if piece]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert len(pieces) == len(ODD)


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("界", "Grüße, 世", "stop"),
        (["día", "it's"], "Grüße, 世界 😀 👩‍👩‍👧 — ", "stop"),
        ('["\\n", "never"]', "Grüße, 世界 😀 👩‍👩‍👧 — it's a día.", "stop"),
        ("it is", ODD, "eos"),
        ("Done it", ODD, "eos"),
        ("[", ODD, "eos"),
    ],
)
def test_a_stop_text_ends_and_no_piece_of_it_is_told(
    recite: Callable[..., generators.Direct], stop: Any, text: str, reason: str
) -> None:
    heard = recite(ODD).ask(["a"], stop=stop)

    assert (heard.texts, heard.reasons) == ([text], [reason])


def test_a_text_ends_where_no_more_tokens_are_wanted(recite: Callable[..., generators.Direct]) -> None:
    heard = recite("one two three").ask(["a"], max_new_tokens=7)

    assert (heard.texts, heard.reasons, heard.made) == (["one two"], ["length"], [7])


def test_half_a_character_at_the_end_is_left_out(recite: Callable[..., generators.Direct]) -> None:
    heard = recite("Grüße").ask(["a"], max_new_tokens=5)

    assert (heard.texts, heard.made) == (["Grü"], [5])


@pytest.mark.parametrize("prompt", ["▁Hello", ""])
def test_spaces_of_sentencepiece_are_kept_where_they_stand_between_texts(prompt: str) -> None:
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordLevel

    words = ["[UNK]", "▁Hello", "▁the", "▁wa", "ter", "<0xE4>", "<0xB8>", "<0x96>", "."]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    pieces = Pieces(tokenizer, [words.index(prompt)] if prompt else [], ())

    told = [pieces.push(words.index(w)) for w in words[2:]]

    start = " the" if prompt else "the"
    assert told == [start, " wa", "ter", "", "", "世", "."]
    assert pieces.finish() == ""


# --- what is asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"max_tokens": 3}, "unknown parameter `max_tokens`; known are max_new_tokens, stop"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is not a whole number of at least 1: 0"),
        ({"max_new_tokens": 2.5}, "`max_new_tokens` is not a whole number"),
        ({"max_new_tokens": "many"}, "`max_new_tokens` is not a number: 'many'"),
        ({"max_new_tokens": True}, "`max_new_tokens` is not a number: True"),
        ({"max_new_tokens": 51}, "`max_new_tokens` is 51, and this model gives at most 50"),
        ({"temperature": -0.1}, "`temperature` is not 0 (greedy) or more"),
        ({"temperature": "nan"}, "`temperature` is not a number"),
        ({"top_p": 0}, "`top_p` is not above 0 and at most 1: 0"),
        ({"top_k": -1}, "`top_k` is not a whole number of at least 0: -1"),
        ({"repetition_penalty": 0}, "`repetition_penalty` is not above 0"),
        ({"seed": 2**80}, "`seed` is not a whole number"),
        ({"stop": ""}, "`stop` is not a text, or a JSON list of texts: ''"),
        ({"stop": "[1, 2]"}, "`stop` is not a text, or a JSON list of texts: [1, 2]"),
        ({"stop": list("abcdefghijklmnopq")}, "`stop` has 17 texts, at most 16 are taken"),
    ],
)
def test_what_cannot_be_is_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        wishes.read(parameters, {"max_new_tokens": 50})

    assert said in str(raised.value)


def test_numbers_may_be_strings_and_the_servers_own_parameters_are_left_alone() -> None:
    found = wishes.read({"max_new_tokens": "5", "temperature": "0.5", "triton_x": 1, "stream": False}, {})

    assert found == Wishes(max_new_tokens=5, temperature=0.5)


@pytest.mark.parametrize("sampled", [{"top_k": 5}, {"top_p": 0.5}, {"seed": 1}])
def test_what_is_for_sampling_samples(sampled: dict[str, Any]) -> None:
    assert wishes.read(sampled, {}).temperature == 1
    assert wishes.read({**sampled, "temperature": 0}, {}).temperature == 0
    assert wishes.read({}, {"defaults": sampled}).temperature == 1


def test_a_text_that_leaves_no_room_is_refused_and_the_usual_number_fits_in_what_is_left(
    recite: Callable[..., generators.Direct],
) -> None:
    direct = recite("one two three" * 50)

    with pytest.raises(ValueError, match="text 1 has 512 tokens, and 1 more would make it longer than the 512 that"):
        direct.ask(["a", "a" * 512])
    with pytest.raises(ValueError, match="text 0 has 500 tokens, and 13 more would make it longer than the 512 that"):
        direct.ask(["a" * 500], max_new_tokens=13)
    heard = direct.ask(["a" * 500])
    assert heard.texts
    assert (heard.made, heard.reasons) == ([12], ["length"])


def test_a_text_is_cut_where_the_recipe_says_so_and_its_end_is_kept(recite: Callable[..., generators.Direct]) -> None:
    direct = recite("one two three", max_length=4)

    (prompt,) = direct.model.prompts(["one two three"])

    assert direct.model.prompts.rust.decode(prompt.tokens) == "hree"
    assert prompt.truncated
    assert not direct.model.prompts(["hree"])[0].truncated


@pytest.mark.torch
def test_a_source_is_cut_at_its_end(make: Make) -> None:
    source, direct = make("t5")
    long = "the people of the water " * 20

    (prompt,) = direct.model.prompts([long])

    assert (len(prompt.tokens), prompt.truncated) == (generators.POSITIONS, True)
    expected = generators.expected(source, long[: generators.POSITIONS], max_new_tokens=5)
    assert direct.ask([long], max_new_tokens=5).texts == [expected]


@pytest.mark.torch
def test_an_empty_text_starts_with_the_token_that_starts_texts_where_there_is_one(
    make: Make, recite: Callable[..., generators.Direct]
) -> None:
    _, direct = make("gpt2")

    assert [p.tokens for p in direct.model.prompts(["", "a"])] == [
        [generators.START],
        [direct.model.prompts.rust.token_to_id("a")],
    ]
    assert len(direct.ask([""], max_new_tokens=3).texts) == 1
    with pytest.raises(ValueError, match="text 1 is empty, and the model has no token that starts a text"):
        recite("one").ask(["a", ""])


# --- slots ------------------------------------------------------------------------------------------------------


def test_more_texts_than_slots_wait_for_their_turn(recite: Callable[..., generators.Direct]) -> None:
    direct = recite("one two three", work=256, max_batch_size=3)
    most = 0

    heard = [direct.ask(["a"] * 3) for _ in range(7)]
    while not all(h.over.is_set() for h in heard):
        most = max(most, len(direct.generator.rows))

    assert [h.texts for h in heard] == [["one two three"] * 3] * 7
    assert 0 < most <= 3


def test_a_client_that_leaves_frees_its_slot(recite: Callable[..., generators.Direct]) -> None:
    direct = recite("a long text that takes its time. " * 12, work=256, max_batch_size=1)
    first = direct.ask(["a"])
    assert first.begun.wait(10)
    waiting = direct.ask(["a"], max_new_tokens=2)

    first.left = True

    assert waiting.texts == ["a "]
    assert first.over.is_set()
    assert first.reasons == [""]


def test_a_waiting_text_whose_client_leaves_is_never_begun(recite: Callable[..., generators.Direct]) -> None:
    direct = recite("a long text that takes its time. " * 12, work=512, max_batch_size=1)
    first = direct.ask(["a"], max_new_tokens=150)
    assert first.begun.wait(10)
    second = direct.ask(["a"])

    second.left = True

    assert second.over.wait(10)
    assert not second.begun.is_set()
    assert not first.over.is_set()
    assert len(first.texts[0]) == 150


def test_a_graph_that_fails_fails_those_who_wait_for_it_and_lives_on(recite: Callable[..., generators.Direct]) -> None:
    direct = recite("one two three")
    session = direct.steps.decoder

    class Broken:
        def run(self, *_: Any) -> Any:
            raise RuntimeError("out of memory")

    direct.steps.decoder = Broken()
    failed = direct.ask(["a", "b"])
    assert failed.over.wait(10)
    direct.steps.decoder = session

    assert failed.failure == "out of memory"
    assert direct.ask(["a"]).texts == ["one two three"]


def test_stopping_ends_what_is_under_way(recite: Callable[..., generators.Direct]) -> None:
    direct = recite("a long text that takes its time. " * 12, work=256)
    heard = direct.ask(["a"])
    assert heard.begun.wait(10)

    started = time.monotonic()
    direct.close()

    assert heard.failure == "the server is stopping"
    assert time.monotonic() - started < 5
