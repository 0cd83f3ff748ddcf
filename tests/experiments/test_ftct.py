"""FTCT: what training shows, how answers are scored, the probes, and claims on made-up tables."""

import itertools

import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashlla.experiments.ftct import testing
from flashlla.experiments.ftct.data import (
    COMMA,
    CONTEXT,
    EQUALS,
    HEAD,
    LETTER,
    LONGER,
    NEWLINE,
    NOISE,
    PAD,
    VALUE,
    longest_fragment,
    make_task,
    training_sequences,
)
from flashlla.experiments.ftct.effects import main_cell
from flashlla.experiments.ftct.mlp import WindowMLP
from flashlla.experiments.ftct.probes import induction_scores, probe_accuracies
from flashlla.experiments.ftct.results import draw, summary
from flashlla.experiments.ftct.run import Config, trials
from flashlla.experiments.ftct.vocabulary import LETTERS, Vocabulary
from flashlla.models import LanguageModel, LanguageModelConfig

LINES = 3


@st.composite
def tasks(choose):
    chain = choose(st.integers(5, 16))
    fragment = choose(st.integers(2, chain - 1))
    return make_task(
        chain, fragment, roots=12, held_out=2, contexts=4, inserted=3, seed=choose(st.integers(0, 99))
    )


def read(task, sequences, row):
    """Lines of a sequence: the vertex that is asked for, and (letter, value) for each vertex."""
    tokens = sequences.tokens[row][sequences.kinds[row] != PAD].tolist()
    lines = []
    for text in task.vocabulary.decode(tokens).split("\n"):
        asked, _, rest = text.partition("=?:")
        pairs = [vertex.split(">")[-1].split("=") for vertex in rest.split(",")]
        lines.append((asked, [(LETTERS.index(letter), int(value)) for letter, value in pairs]))
    return lines


@given(tasks(), st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_no_sequence_shows_a_whole_chain_and_what_it_shows_is_right(task, seed):
    sequences = training_sequences(task, 24, LINES, torch.Generator().manual_seed(seed))
    values, chains = task.graph.values, [chain.tolist() for chain in task.graph.chains]
    legal = {letter: set(values[letter].tolist()) for chain in chains for letter in chain}
    for row in range(24):
        lines = read(task, sequences, row)
        assert len(lines) == LINES and len({tuple(v for v, _ in pairs) for _, pairs in lines}) == 1
        for asked, pairs in lines:
            letters = [letter for letter, _ in pairs]
            assert asked == LETTERS[letters[-1]] and len(set(letters)) == len(letters)
            assert 2 <= len(letters) <= task.chain + LONGER
            shown = [(v, x) for v, x in pairs if v in legal and x >= NOISE]
            assert len(shown) <= task.fragment < task.chain
            for chain in chains:
                assert not all((v in letters and dict(pairs)[v] in legal[v]) for v in chain)
            if shown:  # a fragment among letters outside of the graph
                assert all(v not in legal and 0 <= x < NOISE for v, x in pairs if (v, x) not in shown)
                column = (values[shown[0][0]] == shown[0][1]).nonzero()[0]
                assert column in task.trained and column not in task.held_out
                assert [x for _, x in shown] == [int(values[v, column]) for v, _ in shown]
                part = [v for v, _ in shown]
                assert any(part == chain[i : i + len(part)] for chain in chains for i in range(task.chain))
            else:
                assert all(0 <= x < NOISE for _, x in pairs)
    assert longest_fragment(task, sequences) <= task.fragment


@given(tasks(), st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_the_loss_is_on_what_stands_behind_the_first_vertex_of_a_line(task, seed):
    sequences = training_sequences(task, 8, LINES, torch.Generator().manual_seed(seed))
    tokens, kinds, lines, places = sequences
    words = task.vocabulary
    assert torch.equal(sequences.taught, places >= 1)
    assert not sequences.taught[(kinds == PAD) | (kinds == HEAD) | (kinds == NEWLINE)].any()
    assert torch.equal(kinds == PAD, tokens == words.pad)
    assert not ((kinds[:, :-1] == PAD) & (kinds[:, 1:] != PAD)).any(), "padding is on the right"
    for kind, low, high in (
        (LETTER, words.first_letter, words.first_context),
        (CONTEXT, words.first_context, words.first_number),
        (VALUE, words.first_number, len(words)),
    ):
        assert ((tokens >= low) & (tokens < high))[kinds == kind].all()
    assert (tokens[kinds == COMMA] == words.comma).all() and (tokens[kinds == EQUALS] == words.equals).all()
    for row, line in itertools.product(range(8), range(LINES)):
        inside = (lines[row] == line) & (places[row] >= 0)
        vertices = int(places[row][inside].max()) + 1
        assert int((kinds[row][inside] == COMMA).sum()) == vertices - 1
        for place in range(vertices):
            of = inside & (places[row] == place)
            contexts = tokens[row][of & (kinds[row] == CONTEXT)]
            letter = int(tokens[row][of & (kinds[row] == LETTER)]) - words.first_letter
            assert 1 <= len(contexts) <= task.inserted and len(set(contexts.tolist())) == len(contexts)
            assert ((contexts - words.first_context) // words.contexts == letter).all()


def test_sequences_are_as_long_as_those_of_the_paper(generator):
    for chain, fragment, mean in ((5, 3, 271), (10, 4, 362), (15, 5, 489)):
        task = make_task(chain, fragment, 50, 1, 7, 6, seed=0)
        lengths = (training_sequences(task, 2000, 5, generator).kinds != PAD).sum(1)
        assert lengths.double().mean().item() == pytest.approx(mean, rel=0.05)


def test_one_sequence_in_five_has_no_knowledge(generator):
    task = make_task(8, 4, 14, 2, 2, 2, seed=0)
    sequences = training_sequences(task, 4000, 1, generator)
    numbers = sequences.tokens - task.vocabulary.first_number
    knows = ((sequences.kinds == VALUE) & (numbers >= NOISE)).any(1)
    assert knows.double().mean().item() == pytest.approx(0.8, abs=0.03)


def test_sequences_follow_from_the_generator(task):
    draws = [training_sequences(task, 4, 2, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*draws, strict=True))


def test_text_and_tokens():
    words = Vocabulary(contexts=2, numbers=200)
    text = "H=?:<A1><A0>A=100,<Z1>Z=3\nH=?:<A0>A=7"
    assert words.decode(words.encode(text)) == text
    assert len(set(words.words)) == len(words) == len(words.words)
    for bad in ("A=200", "<A2>", "A = 1", "ä=1"):
        with pytest.raises(ValueError, match="this vocabulary"):
            words.encode(bad)


@pytest.fixture
def task():
    return make_task(6, 3, 9, 2, 2, 2, seed=1)


def test_a_test_is_a_complete_chain_with_other_values_in_every_line(task, generator):
    sequences, letters, roots = testing.complete_chains(task, 20, 2, generator)
    for row in range(20):
        lines = read(task, sequences, row)
        assert [[v for v, _ in pairs] for _, pairs in lines] == [letters[row].tolist()] * 3
        assert letters[row].tolist() in task.graph.chains.tolist()
        columns = roots[row].tolist()
        assert len(set(columns)) == 3 and not set(columns) & set(task.held_out.tolist())
        for column, (_, pairs) in zip(columns, lines, strict=True):
            assert [x for _, x in pairs] == task.graph.values[letters[row], column].tolist()
    _, _, roots = testing.complete_chains(task, 20, 2, generator, held_out=True)
    assert torch.isin(roots[:, -1], task.held_out).all() and torch.isin(roots[:, :-1], task.trained).all()


@pytest.mark.parametrize(
    ("change", "right"),
    (
        ("none", {"whole": True, "vertices": True, "final": True}),
        ("more", {"whole": True, "vertices": True, "final": True}),
        ("value", {"whole": False, "vertices": True, "final": True}),
        ("order", {"whole": False, "vertices": False, "final": True}),
        ("last", {"whole": False, "vertices": True, "final": False}),
        ("cut", {"whole": False, "vertices": False, "final": False}),
    ),
)
def test_answers_are_scored_as_the_paper_does(task, change, right):
    letters = task.graph.chains[:1]
    values = task.graph.values[letters, 0]
    pairs = [f"<{LETTERS[v]}0>{LETTERS[v]}={x}" for v, x in zip(letters[0, 1:], values[0, 1:], strict=True)]
    outside = LETTERS[int((~task.graph.letters).nonzero()[0])]
    if change == "more":
        pairs.insert(2, f"<{outside}1>{outside}=3")
    elif change == "value":
        pairs[1] = pairs[1].split("=")[0] + "=5"
    elif change == "order":
        pairs[0], pairs[1] = pairs[1], pairs[0]
    elif change == "last":
        pairs[-1] = pairs[-1].split("=")[0] + "=5"
    elif change == "cut":
        pairs = pairs[:-1]
    continuation = torch.tensor([task.vocabulary.encode(",".join(pairs) + ",")])
    found = testing.score(task, continuation, letters[:, 1:], values[:, 1:])
    assert {name: bool(share) for name, share in found.items()} == right


class Oracle(torch.nn.Module):
    """Copies the order of the first line and computes the values: what training should arrive at."""

    def __init__(self, task):
        super().__init__()
        self.task, self.weight = task, torch.nn.Parameter(torch.zeros(1))

    def continued(self, tokens, new):
        words, rows = self.task.vocabulary, []
        for row in tokens.tolist():
            text = words.decode([token for token in row if token != words.pad])
            first, *_, last = text.split("\n")
            order = [vertex.split(">")[-1].split("=")[0] for vertex in first.split(":")[1].split(",")]
            root, value = last.split(">")[-1].strip(",").split("=")
            graph = self.task.graph.values
            column = int((graph[LETTERS.index(root)] == int(value)).nonzero()[0])
            answer = [f"{v}={graph[LETTERS.index(v), column]}" for v in order[1:]]
            rows.append((words.encode(",".join(answer)) + [words.pad] * new)[:new])
        return torch.cat([tokens, torch.tensor(rows)], 1)


def test_a_program_that_copies_and_computes_is_right_everywhere(task, monkeypatch):
    monkeypatch.setattr(testing, "WindowMLP", Oracle)
    monkeypatch.setattr(testing, "_values_accuracy", lambda *_: 1.0)
    for held_out in (False, True):
        found = testing.accuracies(Oracle(task), task, 30, 1, seed=0, held_out=held_out)
        assert found == dict.fromkeys(testing.ACCURACIES, 1.0)


def test_the_mlp_sees_its_window_alone(generator):
    model = WindowMLP(vocab=30, window=4, hidden=8, depth=2).eval()
    tokens = torch.randint(1, 30, (3, 12), generator=generator)
    logits = model.logits(model.hidden(tokens)[:, -1])
    other = tokens.clone()
    other[:, :8] = 1
    assert torch.equal(model.logits(model.hidden(other)[:, -1]), logits)
    other[:, 8] = (tokens[:, 8] + 1) % 30
    assert not torch.equal(model.logits(model.hidden(other)[:, -1]), logits)
    assert torch.equal(model.continued(tokens, 3)[:, :12], tokens)


class Reader(torch.nn.Module):
    """Hidden states that show the two numbers before, and logits that copy what followed a letter before."""

    def __init__(self, task):
        super().__init__()
        self.task, self.weight = task, torch.nn.Parameter(torch.zeros(1))

    def hidden(self, tokens):
        words, (batch, seq) = self.task.vocabulary, tokens.shape
        hidden = torch.zeros(batch, seq, len(words), 2)
        for row, line in enumerate(tokens.tolist()):
            followed, number, letter = {}, None, None
            for place, token in enumerate(line):
                if token >= words.first_number:
                    number = token
                elif words.first_letter <= token < words.first_context:
                    letter = token
                elif words.first_context <= token < words.first_number and letter is not None:
                    followed.setdefault(letter, token)
                if number is not None:
                    hidden[row, place, number, 0] = 1.0
                if letter in followed:
                    hidden[row, place, followed[letter], 1] = 50.0
        return hidden.flatten(2)

    def logits(self, hidden):
        return hidden.unflatten(-1, (-1, 2))[..., 1]


def test_probe_and_induction_score_know_a_program_that_reads_and_copies(task):
    found = probe_accuracies(Reader(task), task, 60, 1, seed=0)
    assert found["probe_parent"] > 0.95 and found["probe_others"] < 0.4
    assert found["probe_train_others"] < 0.7
    found = induction_scores(Reader(task), task, 20, seed=0)
    assert min(found.values()) > 0.95 and len(found) == 2
    torch.manual_seed(0)
    sizes = {"vocab_size": len(task.vocabulary), "dim": 16, "depth": 1, "heads": 1}
    model = LanguageModel(LanguageModelConfig(**sizes, mixer="softmax"))
    assert max(map(abs, induction_scores(model, task, 20, seed=0).values())) < 0.1


MAIN = {"chain": 8, "fragment": 4, "depth": 2, "heads": 4}
PERFECT = {
    "whole": 1.0,
    "final": 1.0,
    "vertices": 1.0,
    "values": 1.0,
    "held_out_values": 1.0,
    "induction": 1.0,
}
PERFECT |= {
    "induction_chain": 1.0,
    "probe_parent": 0.9,
    "probe_others": 0.1,
    "probe_train_parent": 0.8,
    "probe_train_others": 0.1,
}


def rows(mixer, numbers, shots=1, step=600, **cell):
    """Three seeds of one mixer in one cell, where ``numbers`` differ from a perfect model."""
    fixed = {**MAIN, **cell, "mixer": mixer, "shots": shots, "step": step, "steps": 600, "lines": 2}
    fixed["longest"] = fixed["fragment"]
    noise = {"whole": 0.001, "vertices": 0.001}
    return [
        {**fixed, "seed": seed} | {n: v + seed * noise.get(n, 0) for n, v in {**PERFECT, **numbers}.items()}
        for seed in range(3)
    ]


def made_up(*parts):
    return pandas.DataFrame([row for part in parts for row in part])


@pytest.fixture
def outcome(judged):
    return lambda name, *parts: judged(name, made_up(*parts)).outcome


LOST_ALL = {"whole": 0.0, "vertices": 0.0, "final": 0.0}
GOOD = rows("softmax", {})
NO_SHOT = rows("softmax", LOST_ALL, shots=0)
LLA = rows("lla", {})


@pytest.mark.parametrize(
    ("name", "holds", "fails"),
    (
        ("lift", [GOOD, NO_SHOT], [GOOD, rows("softmax", {"whole": 0.5}, shots=0)]),
        ("known", [GOOD, NO_SHOT], [GOOD, rows("softmax", {"values": 0.5}, shots=0)]),
        ("fragments", [GOOD], [rows("softmax", {"longest": 8})]),
        (
            "two",
            [GOOD, rows("softmax", {"whole": 0.1}, fragment=2)],
            [GOOD, rows("softmax", {"whole": 0.8}, fragment=2)],
        ),
        ("half", [GOOD], [GOOD, rows("softmax", {"whole": 0.3}, chain=5, fragment=3)]),
        (
            "monotone",
            [GOOD, rows("softmax", {"whole": 0.1}, fragment=2)],
            [rows("softmax", {"whole": 0.5}), rows("softmax", {"whole": 0.7}, fragment=2)],
        ),
        ("large", [GOOD], [rows("softmax", {"vertices": 0.3})]),
        (
            "single",
            [GOOD, rows("softmax", LOST_ALL, depth=1, heads=1)],
            [GOOD, rows("softmax", {}, depth=1, heads=1)],
        ),
        (
            "small_known",
            [GOOD, rows("softmax", LOST_ALL, depth=1, heads=1)],
            [GOOD, rows("softmax", {"values": 0.3}, depth=1, heads=1)],
        ),
        ("mlp_order", [GOOD, rows("mlp", LOST_ALL, heads=0)], [GOOD, rows("mlp", {}, heads=0)]),
        ("mlp_values", [GOOD, rows("mlp", {"values": 0.1}, heads=0)], [GOOD, rows("mlp", {}, heads=0)]),
        (
            "more_shots",
            [GOOD, rows("softmax", LOST_ALL, shots=4)],
            [rows("softmax", {"whole": 0.5}), rows("softmax", {}, shots=4)],
        ),
        (
            "more_shots_fragment",
            [
                GOOD,
                rows("softmax", {"whole": 0.9}, shots=4),
                rows("softmax", {"whole": 0.8}, fragment=3),
                rows("softmax", {"whole": 0.3}, shots=4, fragment=3),
            ],
            [
                GOOD,
                rows("softmax", {"whole": 0.1}, shots=4),
                rows("softmax", {"whole": 0.8}, fragment=3),
                rows("softmax", {"whole": 0.8}, shots=4, fragment=3),
            ],
        ),
        ("parent", [GOOD], [rows("softmax", {"probe_train_others": 0.7})]),
        ("held_out", [GOOD], [rows("softmax", {"held_out_values": 0.5})]),
        ("lift_lla", [LLA, rows("lla", LOST_ALL, shots=0)], [LLA, rows("lla", {}, shots=0)]),
        (
            "steps",
            [GOOD, LLA, rows("softmax", LOST_ALL, step=300), rows("lla", {}, step=300)],
            [GOOD, LLA, rows("softmax", {}, step=300), rows("lla", LOST_ALL, step=300)],
        ),
        (
            "layers",
            [GOOD, LLA, rows("softmax", LOST_ALL, depth=1, heads=1), rows("lla", {}, depth=1, heads=1)],
            [GOOD, LLA, rows("softmax", {}, depth=1, heads=1), rows("lla", LOST_ALL, depth=1, heads=1)],
        ),
        (
            "no_shot",
            [NO_SHOT, rows("lla", {"whole": 0.5}, shots=0)],
            [rows("softmax", {}, shots=0), rows("lla", {"whole": 0.5}, shots=0)],
        ),
        (
            "beyond",
            [GOOD, LLA, rows("softmax", LOST_ALL, shots=4), rows("lla", {}, shots=4)],
            [GOOD, LLA, rows("softmax", {}, shots=4), rows("lla", LOST_ALL, shots=4)],
        ),
    ),
)
def test_claims_are_judged_both_ways(name, holds, fails, outcome):
    assert outcome(name, *holds) == "supported"
    assert outcome(name, *fails) == "not supported"
    assert outcome(name, rows("gla", {})) == ("supported" if name == "fragments" else "inconclusive")


def grid(share):
    """Softmax in many cells; accuracy follows from N and M."""
    cells = ((5, 2), (5, 3), (8, 2), (8, 4), (10, 2), (10, 3), (10, 4))
    return [rows("softmax", {"whole": share(n, m)}, chain=n, fragment=m) for n, m in cells]


def test_ratio_and_fragment_are_told_apart(outcome):
    by_ratio, by_fragment = grid(lambda n, m: m / n), grid(lambda n, m: m / 8 + n / 1000)
    assert outcome("ratio", *by_ratio) == "supported"
    assert outcome("fragment_alone", *by_ratio) == "not supported"
    assert outcome("fragment_alone", *by_fragment) == "supported"
    assert outcome("ratio", GOOD) == "inconclusive"


def test_table_and_figures_of_a_whole_sweep():
    sizes = [rows("softmax", {"whole": 0.4}, depth=1, heads=1), rows("mlp", LOST_ALL, depth=2, heads=0)]
    table = made_up(GOOD, NO_SHOT, LLA, *grid(lambda n, m: m / n)[:3], *sizes)
    assert main_cell(table) == MAIN
    assert set(summary(table)["mixer"]) == {"softmax", "lla", "mlp"}
    assert {"N, M", "layers, heads", "whole, 0 to 1 shots"} <= set(summary(table).columns)
    assert set(draw(table)) == {"shots", "steps", "fragments", "sizes"}


def test_all_mixers_meet_in_the_main_cell_alone():
    config = Config(mixer=("softmax", "gla"), other_mixer=("lla",), seeds=1)
    found = [(t.mixer, t.chain, t.fragment, t.depth, t.heads) for t in trials(config)]
    assert found[:2] == [("softmax", 8, 4, 2, 4), ("gla", 8, 4, 2, 4)]
    assert ("lla", 8, 2, 2, 4) in found and ("lla", 8, 4, 1, 1) in found
    assert found[-1][0] == "mlp" and len(found) == len(set(found))


def test_short_fragments_are_trained_on_until_every_edge_was_seen_as_often():
    config = Config(chain=(8, 8, 5, 15), fragment=(4, 2, 4, 4), steps=100, seeds=1)
    steps = {(t.chain, t.fragment): t.steps for t in trials(config)}
    assert steps == {(8, 4): 100, (8, 2): 200, (5, 4): 100, (15, 4): 200}


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"chain": (8, 17)}, "chain=17 must be 5 to 16"),
        ({"fragment": (4, 8)}, "fragment=8 must be 2 to 7"),
        ({"fragment": (4,)}, "must have as many values"),
        ({"heads": (4, 4), "depth": (2, 2)}, "no pair twice"),
        ({"inserted": 3}, "inserted=3 must be 1 to contexts=2"),
        ({"held_out": 0}, "held_out=0"),
        ({"max_shots": 12}, "max_shots=12 must be 1 at least and less than roots=14"),
        ({"other_mixer": ("magic",)}, "other_mixer 'magic' is unknown"),
        ({"steps": 0}, "steps=0"),
        ({"test": 0}, "test=0 must be at least 1"),
    ),
)
def test_sizes_that_do_not_fit(changes, words):
    with pytest.raises(ValueError, match=words):
        Config(**changes)
