"""Sparsity under shift: the knowledge graph, prompts of the axes, chosen demonstrations, and the claims."""

from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch

from flashlla.experiments.ftct.data import PAD as UNUSED
from flashlla.experiments.ftct.data import make_task
from flashlla.experiments.sparsity import EXPERIMENT
from flashlla.experiments.sparsity import graph as graphs
from flashlla.experiments.sparsity.axes import Sample
from flashlla.experiments.sparsity.axes import rows as axis_rows
from flashlla.experiments.sparsity.demonstrations import ARMS, GUIDED, Lines
from flashlla.experiments.sparsity.graph import ID, LONG, SHORT, SPLITS, build_graph
from flashlla.experiments.sparsity.knowledge import PLACES, Questions
from flashlla.experiments.sparsity.lines import _axes, training_batch
from flashlla.experiments.sparsity.measures import MAIN, compare, rank_correlation
from flashlla.experiments.sparsity.run import Config
from flashlla.experiments.sparsity.selection import difficulty_levels, guided, similar
from flashlla.experiments.sparsity.text import CHOICES, PAD, SYMBOLS, encode, length_of
from flashlla.models import LanguageModel, probes

GRAPH = {"entities": 60, "relations": 10, "rules": 5, "attachments": 4, "facts": 100, "questions": 20}


@pytest.fixture(scope="module")
def graph():
    return build_graph(**GRAPH, seed=1)


# ---- the knowledge graph ----------------------------------------------------------------------------


def test_splits_are_what_they_are_called(graph):
    training = set(graph.training)
    assert len(graph.atomic) == len(graph.deduced) == 100 and len(training) == 200
    assert all(len(set(graph.questions[split])) == 20 for split in SPLITS)
    assert set(graph.questions[ID]) <= training
    for split in (SHORT, LONG):
        assert not training & set(graph.questions[split])
    for facts in graph.questions.values():
        assert all(fact.answer in graph.answers[fact.subject, fact.relation] for fact in facts)


def test_questions_follow_from_training_by_rules_of_their_length(graph, monkeypatch):
    laws = []
    draw = graphs._rules
    monkeypatch.setattr(graphs, "_rules", lambda *words: laws.append(draw(*words)) or laws[-1])
    assert build_graph(**GRAPH, seed=1) == graph, "the same seed, the same graph"
    rules = laws[-1]
    assert all(relation < rule.head for rule in rules for relation in rule.body)
    edges = graphs._edges(graph.training)

    def proved(fact, body):
        places = {fact.subject}
        for relation in body:
            places = {end for place in places for end in edges[relation].get(place, ())}
        return fact.answer in places

    for split, shortest in ((SHORT, {2}), (LONG, {3, 4, 5})):
        for fact in graph.questions[split]:
            lengths = [len(r.body) for r in rules if r.head == fact.relation and proved(fact, r.body)]
            assert min(lengths) in shortest


def test_a_graph_without_room_says_so():
    with pytest.raises(ValueError, match="none of 50 graphs had room: "):
        build_graph(**{**GRAPH, "questions": 2000}, seed=0)


def test_preferential_attachment_makes_hubs():
    neighbours = graphs._attached(500, 3, np.random.default_rng(0))
    degrees = sorted(map(len, neighbours))
    assert degrees[0] >= 1 and degrees[-1] > 10 * degrees[250]
    assert all(a in neighbours[b] for a in range(500) for b in neighbours[a])


def test_text_of_facts(graph):
    tokens, prompts = encode([graphs.Fact(12, 3, 45)], 16)
    text = "".join(SYMBOLS[token] for token in tokens[0] if token != PAD)
    assert text == "Q12 P3 Q45\n" and text[: prompts[0]] == "Q12 P3 "
    assert encode(graph.training, length_of(graph))[0].shape == (200, length_of(graph))


class KnowsAll(LanguageModel):
    """Gives every token of the training text the least loss: what the questions call right."""

    def __init__(self, graph):
        torch.nn.Module.__init__(self)
        self.known = {tuple(row.tolist()) for row in encode(graph.training, length_of(graph))[0]}

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, 20)
        for row, text in zip(logits, tokens, strict=True):
            for whole in self.known:
                if whole[: len(text)] == tuple(text.tolist()):
                    row[range(len(text)), whole[1:]] = 5.0
        return logits


def test_right_answers_are_those_with_the_least_loss(graph):
    model = KnowsAll(graph)
    for split, accuracy in ((ID, 1.0), (SHORT, 0.5)):
        questions = Questions.of(graph, split, length_of(graph), 0, "cpu")
        assert questions.tokens.shape[0] == 20 * CHOICES
        found, _ = questions.answers(model)
        assert found == 1.0 if split == ID else found <= accuracy
    assert Questions.of(graph, SHORT, length_of(graph), 0, "cpu").deduced.all()


# ---- measures ---------------------------------------------------------------------------------------


def test_differences_and_matching():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(400, 64, generator=generator)
    sparse = torch.randn(300, 64, generator=generator).pow(3)
    lengths = (torch.ones(400), torch.ones(300))
    found = compare(dense, sparse, lengths)
    gap = (probes.top_energy(sparse, 0.1).mean() - probes.top_energy(dense, 0.1).mean()).item()
    assert 0 < found["low"] < gap < found["high"]
    # Where long states are sparse whatever the split, matching takes the difference away.
    mixed, long = torch.cat([dense, sparse]), torch.cat([torch.zeros(400), torch.ones(300)])
    assert compare(mixed, sparse, (long, torch.ones(300)))["low"] > 0.05
    labels = torch.cat([torch.arange(400.0), 1000 + torch.arange(300.0)])
    matched = compare(mixed, sparse, (labels, 1000 + torch.arange(300.0)))["matched"]
    assert matched == pytest.approx(0, abs=1e-9)


def test_rank_correlations():
    rng = np.random.default_rng(0)
    z = rng.normal(size=3000)
    x, y = z + rng.normal(size=3000), z + rng.normal(size=3000)
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1.0)
    assert 0.4 < rank_correlation(x, y) < 0.6
    assert abs(rank_correlation(x, y, z)) < 0.1
    assert rank_correlation(np.ones(5), np.arange(5.0)) == 0.0


def test_an_axis_along_which_states_become_sparser():
    generator = torch.Generator().manual_seed(0)
    samples = {}
    for level, power in enumerate((1.0, 1.5, 2.0)):
        h = torch.randn(60, 32, generator=generator)
        h = h.sign() * h.abs().pow(power)
        samples[level] = Sample({"prompt": h, "before the norm": 2 * h}, torch.full((60,), 3.0 - level))
    found = pandas.DataFrame(axis_rows("depth", samples))
    axis = found[(found["kind"] == "axis") & (found["place"] == "prompt")].iloc[0]
    assert axis["rho"] > 0.5 and axis["rho_levels"] == 1.0 and axis["rho_loss"] < -0.5
    assert abs(axis["rho_rotated"]) < 0.4
    assert len(found) == 2 * (3 + 1)


# ---- lines ------------------------------------------------------------------------------------------

TASK = make_task(5, 3, 8, 0, 2, 2, 0)


def drawn(axis, level):
    trial = next(t for t in EXPERIMENT.trials(EXPERIMENT.presets["smoke"]) if t.part == "lines")
    levels, draw = _axes(trial)[axis]
    assert level in levels
    return draw(TASK, level, 30, torch.Generator().manual_seed(level))


def texts(prompts):
    """The prompt and what is counted behind it, row by row."""
    words = TASK.vocabulary.words
    for tokens, end, counted in zip(prompts.tokens, prompts.ends, prompts.counted, strict=True):
        yield TASK.vocabulary.decode(tokens[: end + 1].tolist()), [words[t] for t in tokens[counted]]


@pytest.mark.parametrize(("axis", "level"), [("context", 0), ("context", 3), ("distractors", 4)])
def test_prompts_end_behind_the_first_vertex(axis, level):
    for text, counted in texts(drawn(axis, level)):
        lines = text.split("\n")
        assert len(lines) == (level if axis == "context" else 1) + 1
        assert lines[-1].count("=") == 2 and lines[-1].endswith(",")
        assert sum(word.isdigit() for word in counted) == TASK.chain - 1
        assert sum(word.startswith("<") for word in counted) == TASK.chain - 1


def test_conflicting_examples_have_values_that_do_not_follow():
    follow = []
    for wrong in range(4):
        for text, counted in texts(drawn("conflict", wrong)):
            *shots, last = text.split("\n")
            assert len(shots) == 3 and last.endswith("=") and counted[0].isdigit()
            follow.append((wrong, sum(follows(shot) for shot in shots)))
    table = pandas.DataFrame(follow, columns=["wrong", "follow"]).groupby("wrong")["follow"].mean()
    assert table[0] == 3 and table[3] < 0.2 and table.is_monotonic_decreasing


def follows(line):
    """Whether the values of a line are those of one value of the root."""
    tokens = TASK.vocabulary.encode(line)
    words, graph = TASK.vocabulary, TASK.graph
    places = [i for i, token in enumerate(tokens) if token == words.equals and i > 1]
    pairs = [(tokens[i - 1] - words.first_letter, tokens[i + 1] - words.first_number) for i in places]
    roots = [set((graph.values[letter] == number).nonzero()[:, 0].tolist()) for letter, number in pairs]
    return bool(set.intersection(*roots))


def test_lines_to_choose_from():
    lines = Lines.draw(TASK, 50, torch.Generator().manual_seed(0))
    assert len(set(lines.vertices.tolist())) > 5
    for text, question, known in zip(lines.texts, lines.questions, lines.about.known, strict=True):
        assert torch.equal(text[: len(question)], question)
        assert TASK.vocabulary.decode(question.tolist()).endswith(",")
        assert known[0] and 2 <= known.sum() <= TASK.chain


# ---- demonstrations ---------------------------------------------------------------------------------


def test_a_training_batch_has_lines_of_about_one_length():
    task = make_task(8, 4, 14, 2, 2, 2, seed=0)
    batches = [training_batch(task, 16, 2, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert all(batch.tokens.shape[0] == 16 for batch in batches)
    used = sum(int((batch.kinds != UNUSED).sum()) for batch in batches)
    assert used / sum(batch.tokens.numel() for batch in batches) > 0.8


def test_levels_are_of_equal_size_and_questions_fall_into_them():
    pool = np.random.default_rng(0).normal(size=100)
    levels, own = difficulty_levels(pool, np.array([-9.0, np.median(pool), 9.0]))
    assert np.bincount(levels).tolist() == [0, 20, 20, 20, 20, 20]
    assert own.tolist() == [1, 3, 5]
    assert levels[pool.argmin()] == 1 and levels[pool.argmax()] == 5
    again = difficulty_levels(pool, pool)[1]
    assert (again == levels).mean() > 0.95


def test_the_rule_of_demonstrations():
    levels = np.array([1, 1, 2, 3, 4, 5, 5, 2])
    near = [5, 0, 1, 2, 3, 4, 6, 7]
    assert guided(near, levels, 1) == [0, 2], "one of the level, one of the next"
    assert guided(near, levels, 2) == [2, 7] and guided(near, levels, 3) == [3, 5]
    assert guided(near, levels, 4) == [3, 4], "one of the level below first"
    assert guided(near, levels, 5) == [4, 5]
    assert guided([0, 1], levels, 5) == [0, 1], "nothing of that level is near"


def test_similar_lines_share_words():
    pool = [frozenset("abc"), frozenset("abd"), frozenset("xyz")]
    assert similar(pool, frozenset("abe"))[:2] == [0, 1] and similar(pool, frozenset("xy"))[0] == 2


# ---- configurations and claims ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"size": ("big",)}, "size 'big' must be layers and heads"),
        ({"steps": 30, "every": 20}, "steps=30 must be a multiple of every=20"),
        ({"part": ("maths",)}, "part 'maths' is unknown"),
        ({"precision": ("float8",)}, "precision 'float8' is unknown"),
        ({"axis_mixer": ("magic",)}, "axis_mixer 'magic' is unknown"),
        ({"shots": 14}, "shots=14 must be less than roots=14"),
        ({"pool": 0}, "pool=0 must be positive"),
        ({"size": ("2-2", "2-1"), "head_dim": 16}, "a width of 16 must be at least 20"),
    ],
)
def test_wrong_configurations(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(Config(), **changes)


def made_up(gap=0.005, rise=0.03, rho=0.1, rho_levels=0.9, gain=0.1, control=0.0, seeds=2):
    """A table of two sizes and two precisions in which everything is as given."""
    null, rows = probes.gaussian_null(64)[MAIN], []
    for seed in range(seeds):
        for mixer in ("softmax", "lla"):
            common = {"mixer": mixer, "seed": seed, "width": 64}
            for size, precision in (("4-4", "float32"), ("2-2", "float32"), ("4-4", "bfloat16")):
                variant = {**common, "kind": "state", "size": size, "precision": precision, "steps": 10}
                for step, base in (
                    (0, null.mean),
                    (5, null.mean + rise),
                    (9, null.mean + rise),
                    (10, null.mean),
                ):
                    scale = 0.5 if size == "2-2" else 1.0
                    for split, more in ((ID, 0.0), (LONG, gap / 2), (SHORT, gap)):
                        more = scale * more if step else control * null.std
                        row = {"split": split, "place": PLACES[0], "step": step, "accuracy": 0.5}
                        row |= {MAIN: base + more, "rotated": null.mean + control * null.std, "matched": more}
                        rows.append({**variant, **row, "deduced": base})
            for axis in ("depth", "context", "distractors", "conflict"):
                axes = {"rho": rho + 0.01 * seed, "rho_levels": rho_levels, "place": PLACES[0]}
                rows.append({**common, "kind": "axis", "axis": axis, **axes})
            for arm in ARMS:
                better = 0.0 if arm == GUIDED else gain
                row = {"accuracy": 0.5 - better, "gain": better, "low": better - 0.1, "high": better + 0.1}
                rows.append({**common, "kind": "arm", "arm": arm, **row})
    return pandas.DataFrame(rows)


def outcomes(table):
    return {claim.name: claim.judge(table).outcome for claim in EXPERIMENT.claims}


def test_claims_hold_where_everything_is_as_the_paper_says():
    assert set(outcomes(made_up()).values()) == {"supported"}


def test_claims_fail_where_it_is_the_other_way_round():
    against = made_up(gap=-0.005, rise=0.0, rho=-0.3, rho_levels=-0.9, gain=-0.1, control=3.0)
    found = outcomes(against)
    assert found.pop("end") == "supported"
    assert set(found.values()) == {"not supported"}


def test_claims_without_their_part_are_inconclusive():
    table = made_up()
    for kind in ("state", "axis", "arm"):
        part = table[table["kind"] == kind].dropna(axis=1, how="all")
        found = outcomes(part)
        assert "inconclusive" in found.values() and "supported" in found.values()
        assert not EXPERIMENT.summary(part).empty


def test_every_variant_belongs_to_some_mixers_alone():
    config = replace(Config(), size=("2-2", "1-2"), precision=("float32", "bfloat16"), seeds=1)
    trials = [trial for trial in EXPERIMENT.trials(config) if trial.part == "graph"]
    assert sum(trial.mixer == "softmax" for trial in trials) == 4
    assert all(sum(trial.mixer == mixer for trial in trials) == 1 for mixer in config.mixer[1:])
