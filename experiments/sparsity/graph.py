"""A synthetic knowledge graph: facts, rules that lead from facts to others, and questions about both.

After arXiv 2603.03415. A fact ``(a, r, b)`` is an edge from entity a to entity b with relation r. A rule says
that a chain of relations, its body, amounts to another relation, its head; the relations of a body come
before the head, so that no rule leads back to itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BODY = (2, 3, 4, 5)  # lengths of bodies
TEMPERATURE = 0.25  # length l has the weight exp(-TEMPERATURE * l)
SPARE = 1.5  # facts that are held out for every question: training does not prove all of them
NEW = 0.7  # how often a step of a walk adds an edge where it could take one
DRAWS = 50
ATTEMPTS = 50  # walks for every edge that is wanted, before a graph counts as too small
SHORT, LONG = "OOD short", "OOD long"
ID = "ID"
SPLITS = (ID, LONG, SHORT)


class Fact(NamedTuple):
    """An edge of the graph."""

    subject: int
    relation: int
    answer: int


class Rule(NamedTuple):
    """A chain of relations that amounts to another one."""

    head: int
    body: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """What is learned and what is asked.

    Attributes:
        entities: their number.
        atomic, deduced: facts of training; deduced ones follow from atomic ones.
        questions: facts by split. Those of ``"ID"`` are in training; the others are not, but follow from it:
            the shortest body that proves one has two relations in ``"OOD short"`` and three or more in
            ``"OOD long"``.
        answers: all entities that make a fact of a subject and a relation.
    """

    entities: int
    atomic: tuple[Fact, ...]
    deduced: tuple[Fact, ...]
    questions: dict[str, tuple[Fact, ...]]
    answers: dict[tuple[int, int], frozenset[int]]

    @property
    def training(self) -> tuple[Fact, ...]:
        """All facts of training."""
        return self.atomic + self.deduced


Edges = dict[int, dict[int, set[int]]]  # relation, subject, answers


def build_graph(
    *, entities: int, relations: int, rules: int, attachments: int, facts: int, questions: int, seed: int
) -> Graph:
    """Draw a graph; every number follows from ``seed``. One that has no room for all facts is drawn anew.

    Args:
        attachments: edges with which a new entity is tied to those before it, with a probability that grows
            with how many edges these have already.
        facts: atomic facts of training; there are as many deduced ones.
        questions: of each split.

    Raises:
        ValueError: in many draws there was no room for so many facts, or too few were left to be asked.
    """
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        try:
            return _draw(rng, entities, relations, rules, attachments, facts, questions)
        except _TooSmallError as error:
            reason = error
    raise ValueError(f"none of {DRAWS} graphs had room: {reason}")


class _TooSmallError(Exception):
    """A graph without room for what is wanted of it."""


def _draw(
    rng: np.random.Generator,
    entities: int,
    relations: int,
    rules: int,
    attachments: int,
    facts: int,
    questions: int,
) -> Graph:
    neighbours = _attached(entities, attachments, rng)
    laws = _rules(relations, rules, rng)
    atomic = _atomic(neighbours, laws, facts, rng)
    deduced = _deduced(atomic, laws)
    known = [*_facts(atomic), *deduced]
    candidates = _by_proof([deduced[i] for i in rng.permutation(len(deduced))], _edges(known), laws)
    spare = int(SPARE * questions)
    learned = [fact for found in candidates.values() for fact in found[spare:]]
    if len(learned) < facts:
        raise _TooSmallError(
            f"only {len(learned)} facts follow from facts={facts}, beside those that are kept for "
            f"questions={questions} of each split; give more rules, or ask fewer"
        )
    told = [learned[i] for i in rng.permutation(len(learned))[:facts]]
    training = [*_facts(atomic), *told]
    held_out = [fact for found in candidates.values() for fact in found[:spare]]
    asked = {ID: [training[i] for i in rng.permutation(len(training))]}
    asked |= _by_proof(held_out, _edges(training), laws)
    for split, found in asked.items():
        if len(found) < questions:
            raise _TooSmallError(
                f"only {len(found)} facts are left for the split {split!r}, and questions={questions} are "
                "asked; give more facts or rules, or ask fewer"
            )
    answers = defaultdict(set)
    for fact in known:
        answers[fact.subject, fact.relation].add(fact.answer)
    return Graph(
        entities,
        tuple(_facts(atomic)),
        tuple(told),
        {split: tuple(asked[split][:questions]) for split in SPLITS},
        {key: frozenset(found) for key, found in answers.items()},
    )


def _attached(entities: int, attachments: int, rng: np.random.Generator) -> list[list[int]]:
    """Neighbours of every entity under preferential attachment; numbers say nothing of their age."""
    names = rng.permutation(entities).tolist()
    neighbours: list[list[int]] = [[] for _ in range(entities)]
    ends: list[int] = []  # every entity once for each of its edges
    for new in range(1, entities):
        older = (
            range(new) if new <= attachments else {ends[i] for i in rng.integers(len(ends), size=attachments)}
        )
        for old in older:
            neighbours[names[new]].append(names[old])
            neighbours[names[old]].append(names[new])
            ends += [old, new]
    return neighbours


def _rules(relations: int, rules: int, rng: np.random.Generator) -> list[Rule]:
    """Rules in the order of their heads, which are in the upper half of the relations."""
    weights = np.exp(-TEMPERATURE * np.array(BODY))
    lengths = rng.choice(BODY, size=rules, p=weights / weights.sum())
    heads = np.sort(rng.integers(relations // 2, relations, size=rules))
    return [
        Rule(int(head), tuple(rng.integers(head, size=length).tolist()))
        for head, length in zip(heads, lengths, strict=True)
    ]


def _atomic(neighbours: list[list[int]], laws: list[Rule], count: int, rng: np.random.Generator) -> Edges:
    """Edges along walks that follow the body of a rule, so that rules have something to say.

    A step takes an edge that is there as often as a new one, which leads to a neighbour from where the body
    goes on, if there is such.
    """
    edges: Edges = defaultdict(lambda: defaultdict(set))
    found = 0
    for _ in range(ATTEMPTS * count):
        place = int(rng.integers(len(neighbours)))
        body = laws[rng.integers(len(laws))].body
        for relation, following in zip(body, (*body[1:], None), strict=True):
            known = edges[relation][place]
            if not known or rng.random() < NEW:
                onward = [n for n in neighbours[place] if edges[following].get(n)] or neighbours[place]
                end = onward[rng.integers(len(onward))]
                found += end not in known
                known.add(end)
                if found == count:
                    return edges
            place = sorted(known)[rng.integers(len(known))]
    raise _TooSmallError(f"facts={count} do not fit into {len(neighbours)} entities; give fewer")


def _deduced(atomic: Edges, laws: list[Rule]) -> list[Fact]:
    """All facts that follow and are not atomic, those that follow from deduced ones among them, sorted."""
    known = _edges(_facts(atomic))
    deduced = set()
    for rule in laws:  # heads ascend, and so a body is complete when its rule comes
        new = set(_conclusions(rule, known)) - set(_facts(atomic))
        deduced |= new
        for fact in new:
            known[fact.relation][fact.subject].add(fact.answer)
    return sorted(deduced)


def _by_proof(held_out: list[Fact], training: Edges, laws: list[Rule]) -> dict[str, list[Fact]]:
    """Facts by the shortest body that proves them from training alone; those that none proves are dropped."""
    shortest: dict[Fact, float] = {}
    for rule in laws:
        for fact in _conclusions(rule, training):
            shortest[fact] = min(len(rule.body), shortest.get(fact, math.inf))
    proofs = [(fact, shortest[fact]) for fact in held_out if fact in shortest]
    return {SHORT: [f for f, steps in proofs if steps <= 2], LONG: [f for f, steps in proofs if steps > 2]}


def _conclusions(rule: Rule, edges: Edges) -> Iterable[Fact]:
    """What a rule says of the entities that chains of its relations connect."""
    first, *rest = rule.body
    for subject, ends in edges[first].items():
        for relation in rest:
            steps = edges[relation]
            ends = {end for place in ends for end in steps.get(place, ())}
        for end in ends:
            if end != subject:
                yield Fact(subject, rule.head, end)


def _edges(facts: Iterable[Fact]) -> Edges:
    edges: Edges = defaultdict(lambda: defaultdict(set))
    for fact in facts:
        edges[fact.relation][fact.subject].add(fact.answer)
    return edges


def _facts(edges: Edges) -> list[Fact]:
    return sorted(
        Fact(subject, relation, answer)
        for relation, subjects in edges.items()
        for subject, answers in subjects.items()
        for answer in answers
    )
