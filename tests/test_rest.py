"""REST: the suffix array, what a datastore finds and counts, its files, the script that makes one, and the cost."""

import gzip
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

from evaluation.launch.config import parse
from methods import DRAFTERS, get_method
from methods.build import build_drafter, check_weights
from methods.drafters.datastore import Datastore, read_table, write
from methods.drafters.rest import LENGTH, RestDrafter, tree_of
from methods.drafters.suffix_array import suffix_array
from methods.engine.sampling import Sampling
from methods.errors import UserError
from methods.models import Models
from methods.pairs import get_pair
from methods.paths import ROOT
from methods.target import Outcome
from scripts import make_datastore
from tests.host_time import HOST_LIMIT, usual

CPU = [torch.device("cpu")]
END = 99
SCRIPT = ROOT / "scripts/make_datastore.py"


def drawn_documents(seed: int, letters: int, vocabulary: int = 0) -> list[list[int]]:
    """With the highest tokens of the vocabulary among the letters."""
    drawn = random.Random(seed)
    tokens = [max(letter, vocabulary - letter) if letter % 2 else letter for letter in range(letters)]
    return [[drawn.choice(tokens) for _ in range(drawn.randint(0, 14))] for _ in range(drawn.randint(1, 7))]


# the suffix array -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letters", [1, 2, 3, 9])
def test_suffixes_are_in_order(letters: int) -> None:
    for seed in range(60):
        text = [token for document in drawn_documents(seed, letters) for token in (*document, END)]
        ordered = [token if token != END else END + place for place, token in enumerate(text)]
        expected = sorted((i for i, token in enumerate(text) if token != END), key=lambda i: ordered[i:])
        assert suffix_array(np.array(text), END).tolist() == expected


def test_equal_documents_and_long_repetitions_are_no_trouble() -> None:
    text = np.array([*[7] * 300, END] * 3)
    found = suffix_array(text, END)
    lengths = [text[start:].tolist().index(END) for start in found]
    assert lengths == sorted(lengths, reverse=True) and len(set(found.tolist())) == 900


def test_a_text_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="ends with a separator"):
        suffix_array(np.array([1, 2]), END)


# what a datastore finds -----------------------------------------------------------------------------------------------


def followers(documents: list[list[int]], query: list[int], length: int = LENGTH) -> list[list[int]]:
    """What follows each occurrence, to its document's end at most."""
    size = len(query)
    return [
        document[i + size : i + size + length]
        for document in documents
        for i in range(len(document) - size + 1)
        if document[i : i + size] == query
    ]


@pytest.mark.parametrize("vocabulary", [50, 65535, 65536, 150000])
def test_it_finds_and_counts_what_is_there(tmp_path: Path, vocabulary: int) -> None:
    """Also tokens of more than two bytes, whose high bytes come first."""
    for seed in range(25):
        documents = drawn_documents(seed, 5, vocabulary)
        table = write(tmp_path, documents, vocabulary)
        if not table["tokens"]:
            continue
        store, drawn = Datastore(tmp_path, vocabulary), random.Random(seed)
        letters = sorted({token for document in documents for token in document})
        for _ in range(30):
            query = [drawn.choice(letters) for _ in range(drawn.randint(1, 5))]
            rows = store.occurrences(query)
            found = followers(documents, query)
            assert len(rows) == len(found)
            longest = next((n for n in range(len(query), 0, -1) if followers(documents, query[-n:])), 0)
            for least in (1, 2, 4):
                length, longest_rows = store.longest(query, least)
                assert length == (longest if longest >= least else 0)
                assert len(longest_rows) == (len(followers(documents, query[-length:])) if length else 0)
            if not rows:
                continue
            trie = store.trie(rows, len(query), LENGTH, 10**6)
            paths: list[tuple[int, ...]] = []
            for parent, token in zip(trie.parents_K.tolist(), trie.tokens_K.tolist(), strict=True):
                paths.append((*(paths[parent] if parent >= 0 else ()), token))
            counted = Counter(tuple(one[:end]) for one in found for end in range(1, len(one) + 1))
            assert dict(zip(paths, trie.counts_K.tolist(), strict=True)) == counted
            assert paths == sorted(paths, key=lambda path: (len(path), path)) and len(set(paths)) == len(paths)


def test_of_many_occurrences_those_that_are_counted_are_spread_over_all(tmp_path: Path) -> None:
    """Token 1 goes on in ten ways, equally often: the first occurrences in order would all go on by the first."""
    write(tmp_path, [[1, 10 + way] for way in range(10) for _ in range(100)], 50)
    store = Datastore(tmp_path, 50)
    trie = store.trie(store.occurrences([1]), 1, LENGTH, 20)
    assert trie.tokens_K.tolist() == list(range(10, 20)) and trie.counts_K.tolist() == [2] * 10


def test_a_damaged_file_drafts_nothing_that_is_no_token(tmp_path: Path) -> None:
    """Its sizes are right, so that only reading it all would tell."""
    write(tmp_path, [[1, 2, 3], [1, 2, 4]], 50)
    tokens, suffixes = (tmp_path / name for name in ("tokens.bin", "suffixes.bin"))
    numbers = np.fromfile(tokens, ">u2")
    numbers[numbers == 3] = 50
    numbers.tofile(tokens)
    store = Datastore(tmp_path, 50)
    assert store.trie(range(2), 2, LENGTH, 9).tokens_K.tolist() == [4]
    del store
    np.full(6, -9, "<i4").tofile(suffixes)
    assert set(Datastore(tmp_path, 50).trie(range(2), 0, LENGTH, 9).tokens_K.tolist()) <= {1, 2, 4}


DOCUMENTS = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6], [2, 7], [8, 1, 2]]


def drafter(folder: Path, least: int = 1, documents: list[list[int]] = DOCUMENTS) -> RestDrafter:
    write(folder, documents, 50)
    return RestDrafter(Datastore(folder, 50), 100, least, 1000)


def settled(rest: RestDrafter, *tokens: int) -> RestDrafter:
    *prompt, pending = tokens
    rest.begin(prompt, Sampling(), None)
    rest.settle(Outcome([pending], [0]))
    return rest


def test_the_most_frequent_are_drafted_and_of_equals_the_nearer_and_smaller(tmp_path: Path) -> None:
    rest = settled(drafter(tmp_path), 40, 1, 2)
    shapes = {
        1: ([2, 3], [-1, 0]),
        2: ([2, 3, 6], [-1, 0, 0]),
        3: ([2, 3, 6, 4], [-1, 0, 0, 1]),
        9: ([2, 3, 6, 4, 5], [-1, 0, 0, 1, 1]),
    }
    for room, (tokens, parents) in shapes.items():
        tree = rest.propose(room)
        assert (tree.tokens_N.tolist(), tree.parents_N.tolist()) == (tokens, parents)
    assert rest.propose(9).sizes_N == [0, 1, 2, 3, 4]
    rest.limit(None, 1)
    assert rest.propose(9).tokens_N.tolist() == [2, 3, 6]


def test_the_longest_suffix_counts_and_documents_are_apart(tmp_path: Path) -> None:
    rest = drafter(tmp_path)
    assert settled(rest, 40, 2).propose(9).tokens_N.tolist() == [2, 3, 6, 7, 4, 5]
    assert settled(rest, 8, 1, 2).propose(9).tokens_N.tolist() == [2]  # the document ends there
    assert settled(rest, 8, 41).propose(9).tokens_N.tolist() == [41]
    assert settled(drafter(tmp_path, least=2), 40, 2).propose(9).drafted == 0
    rest = settled(drafter(tmp_path), 1, 2, 3)
    rest.settle(Outcome([9, 1], [0, 1]))
    assert rest.propose(1).tokens_N.tolist() == [1, 2]


def test_a_tree_is_cut_to_what_is_wanted_and_stays_a_tree(tmp_path: Path) -> None:
    documents = drawn_documents(3, 3) * 5 + drawn_documents(4, 3)
    rest = drafter(tmp_path, 1, documents)
    rows = rest.store.occurrences([1])
    trie = rest.store.trie(rows, 1, LENGTH, 1000)
    for nodes in range(len(trie.counts_K) + 2):
        tree = tree_of(1, trie, nodes)
        assert tree.drafted == min(nodes, len(trie.counts_K))
        siblings = list(zip(tree.parents_N.tolist(), tree.tokens_N.tolist(), strict=True))
        assert len(set(siblings)) == len(siblings)
        kept = sorted(trie.counts_K.tolist(), reverse=True)[: tree.drafted]
        assert sum(kept) == sum(sorted(trie.counts_K.tolist())[len(trie.counts_K) - tree.drafted :])


# its files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(weights: dict[str, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    for path in weights["datastore"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_datastore_that_does_not_fit_is_one_sentence(tiny: Path, store: Path) -> None:
    table = json.loads((store / "datastore.json").read_text())
    check = DRAFTERS["rest"].check

    def told(**changes: object) -> str:
        (store / "datastore.json").write_text(json.dumps(table | changes))
        with pytest.raises(UserError) as error:
            check_weights(check, Models(str(tiny), str(store), "float32", CPU))
        return str(error.value)

    assert "vocabulary of 97 tokens, the target one of 96" in told(vocabulary=97)
    assert "another tokenizer" in told(tokenizer="0" * 64)
    assert "no whole datastore" in told(format="another")
    assert "no whole datastore" in told(tokens=table["tokens"] + 1)
    assert "make one with scripts/make_datastore.py" in told(tokens="many")
    (store / "suffixes.bin").unlink()
    assert "make one with scripts/make_datastore.py" in told()
    with pytest.raises(UserError, match="tokens from 0 to 49, got 3 to 50"):
        write(store, [[3, 50]], 50)
    with pytest.raises(UserError, match="got none"):
        write(store, [], 50)


def test_methods_of_a_launch_share_it(tiny: Path, store: Path) -> None:
    models = Models(str(tiny), str(store), "float32", CPU)
    one, other = (build_drafter(get_method(name), models, {}) for name in ("rest", "rest@shortest=3@matches=5"))
    assert isinstance(one, RestDrafter) and isinstance(other, RestDrafter) and one.store is other.store
    assert (other.least, other.matches) == (3, 5)


def test_no_two_options_of_a_row_share_a_name() -> None:
    for first, other in (spec.parts for spec in DRAFTERS.values() if spec.parts):
        assert not first.before.keys() & other.all_options.keys()


def test_the_embedded_pair_has_one() -> None:
    folder = ROOT / get_pair("smollm2-135m").drafts["datastore"]
    assert read_table(folder, str(folder))["tokens"] > 10**6
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    assert parse(["rest", "smollm2-135m"]).weights_of(get_method("rest")) == {
        "datastore": str(folder.relative_to(ROOT))
    }


# the script -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The script, with these words behind its name."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["make_datastore.py", *map(str, words)])
        return make_datastore.main()

    return run


def test_the_script_makes_one_of_texts_and_answers(
    tiny: Path, tmp_path: Path, made: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"output_ids": [5, 6, 7]}\n{"said": "help"}\n')
    files = tmp_path / "a.txt", tmp_path / "b.jsonl.gz"
    assert made("--target", tiny, *files, "--field", "said", "--out", tmp_path / "store") == 0
    assert "12 tokens of 3 documents" in capsys.readouterr().out
    models = Models(str(tiny), str(tmp_path / "store"), "float32", CPU)
    rest = build_drafter(get_method("rest@shortest=1"), models, {})
    assert isinstance(rest, RestDrafter)
    ids = models.target_checkpoint.tokenizer("help")["input_ids"]
    assert settled(rest, *ids[:3]).propose(1).tokens_N.tolist() in (ids[2:4], [ids[2], ids[2]])
    assert settled(rest, 5).propose(9).tokens_N.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "expected files or --benchmark"),
        (["missing.txt"], "cannot read documents from missing.txt"),
        (["--benchmark", "mt_bench"], "training split"),
        (["--benchmark", "humaneval"], "training split"),
        (["lines.jsonl"], "line 1: expected output_ids, numbers, or a text as text"),
        (["none.jsonl"], "got none"),
        (["empty.jsonl"], "got none that has a token"),
        (["one.jsonl", "--out", "one.jsonl"], "cannot write one.jsonl: File exists; choose another --out"),
    ],
)
def test_mistakes_get_one_sentence(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[..., int],
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines.jsonl").write_text('{"output_ids": ["a"]}\n')
    for name, tokens in (("empty", []), ("one", [1])):
        Path(f"{name}.jsonl").write_text(json.dumps({"output_ids": tokens}))
    Path("none.jsonl").write_text("")
    with pytest.raises(UserError) as told:
        made("--target", tiny, "--out", tmp_path / "store", *words)
    assert sentence in str(told.value) and "\n" not in str(told.value)


def test_a_mistake_is_status_2(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and "expected files or --benchmark" in done.stderr


# what it costs --------------------------------------------------------------------------------------------------------


def test_a_round_costs_little_with_ten_million_tokens(tmp_path: Path) -> None:
    """Less than 3% of a pass: of processor time, as others may share the machine."""
    drawn = np.random.default_rng(0)
    chances = 1 / np.arange(1, 49153)
    phrases = drawn.choice(49152, (20000, 10), p=chances / chances.sum())
    documents = phrases[drawn.integers(0, 20000, (10000, 100))].reshape(10000, 1000)
    write(tmp_path, documents.tolist(), 49152)
    rest = RestDrafter(Datastore(tmp_path, 49152), 64, 1, 100)
    text = phrases[drawn.integers(0, 20000, 440)].flatten().tolist()
    nodes: list[int] = []

    def rounds() -> Iterator[float]:
        rest.begin(text[:4096], Sampling(), None)
        for place in range(4096, 4096 + 60 * 3, 3):
            begin = time.thread_time()
            rest.settle(Outcome(text[place : place + 3], [0]))
            nodes.append(rest.propose(15).drafted)
            yield time.thread_time() - begin

    assert usual(rounds) < HOST_LIMIT and median(nodes) == 15
