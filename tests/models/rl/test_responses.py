"""Answers under a grammar: they keep to it, are drawn as they should be, and scored as they were drawn."""

import itertools

import pytest
import torch

from flashlla.models.rl import (
    ANY,
    NONE,
    Block,
    BlockKind,
    Grammar,
    constrained_log_probs,
    constrained_logits,
    free_text,
    join_responses,
    phrase_table,
    respond,
    response_hidden,
    token_entropy,
)

VOCAB = 32
KEEP, SWITCH, DONE, START, END, ACT, OVER = 1, 2, 3, 4, 5, 6, 7
TEMPLATES = [[10], [10, 11], [12, 13, 14]]
CURRENT = [[], [12, 13], [10]]  # the first row has no subgoal yet
ACTIONS = [[[20], [20, 21], [22]], [[23, 24]], [[25], [26, 20], [27], [28, 28]]]
PROMPTS = [2, 6, 4]  # lengths


def grammar(device=None, actions=ACTIONS, current=CURRENT):
    """Keep or switch, a copy or a template, and an action, as tags and phrases of a plan-execute policy."""
    switch = [[[KEEP] if c else [], [SWITCH]] for c in current]
    subgoals = [[c, *TEMPLATES] for c in current]
    blocks = [
        Block(phrase_table(switch), BlockKind.SWITCH, end=DONE),
        Block(
            phrase_table(subgoals),
            BlockKind.SUBGOAL,
            start=[START],
            end=END,
            requires=torch.tensor([[0, 1, 1, 1]]),
        ),
        Block(phrase_table(actions), BlockKind.ACTION, start=[ACT], end=OVER),
    ]
    return Grammar(blocks, len(current), VOCAB, device)


def sentences(row):
    """All answers of a row: tokens, kinds and choices."""
    found = []
    for switch, subgoal, action in itertools.product(range(2), range(4), range(len(ACTIONS[row]))):
        if (switch == 0) == (subgoal == 0) and (switch == 1 or CURRENT[row]):
            words = [CURRENT[row], *TEMPLATES][subgoal]
            parts = [[(KEEP, SWITCH)[switch], DONE], [START, *words, END], [ACT, *ACTIONS[row][action], OVER]]
            kinds = [kind for kind, part in enumerate(parts, 1) for _ in part]
            found.append(([*itertools.chain(*parts)], kinds, [switch, subgoal, action]))
    return found


@pytest.fixture
def prompts(generator):
    return [torch.randint(VOCAB, (n,), generator=generator) for n in PROMPTS]


@pytest.fixture(params=("lla", "gated_deltanet"))
def model(request, make_model):
    return make_model(request.param).eval()


def test_answers_keep_to_the_grammar(model, prompts, generator):
    out = respond(model, prompts, grammar(), generator=generator, pad_token_id=9)
    assert out.taken.shape == out.mask.shape == out.kinds.shape == (3, grammar().longest)
    assert out.tokens.shape == (3, 6 + grammar().longest) and out.lengths.tolist() == PROMPTS
    for row, prompt in enumerate(prompts):
        known = {tuple(tokens): (kinds, choices) for tokens, kinds, choices in sentences(row)}
        taken = out.taken[row, out.mask[row]].tolist()
        kinds, choices = known[tuple(taken)]
        assert out.kinds[row, out.mask[row]].tolist() == kinds and out.choices[row].tolist() == choices
        assert (out.taken[row, len(taken) :] == 9).all() and not out.kinds[row, len(taken) :].any()
        text = torch.cat([prompt, out.taken[row]])
        assert torch.equal(out.tokens[row, : len(text)], text)
        assert out.allowed[row].gather(1, out.taken[row, :, None]).all()
    assert (out.log_probs[~out.free] == 0).all() and (out.log_probs[out.free] < 0).all()
    assert out.choices[0, 0] == 1  # nothing to keep yet


def test_log_probs_are_those_of_one_pass(model, prompts, generator):
    for temperature in (1.0, 0.6):
        out = respond(model, prompts, grammar(), temperature=temperature, generator=generator)
        again = constrained_log_probs(model, out, temperature)
        torch.testing.assert_close(again.detach(), out.log_probs, atol=2e-5, rtol=2e-5)
        again.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_probabilities_of_all_answers_sum_to_one(make_model, prompts):
    """Each as often drawn as it is likely; written by the reader, token by token."""
    model, copies, all_of = make_model().eval(), 4000, sentences(2)
    rows = grammar(actions=[ACTIONS[2]] * len(all_of), current=[CURRENT[2]] * len(all_of))
    reader, p = rows.reader(), torch.ones(len(all_of))
    longest = max(len(tokens) for tokens, *_ in all_of)
    texts = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, *_ in all_of])
    with torch.no_grad():
        logits = model(torch.cat([prompts[2].expand(len(all_of), -1), texts], 1))[:, PROMPTS[2] - 1 : -1]
    for step in range(longest):
        p_next = logits[:, step].masked_fill(~reader.allowed(), -torch.inf).softmax(-1)
        p = p * p_next.gather(1, texts[:, step : step + 1])[:, 0]
        reader.read(texts[:, step])
    assert reader.finished.all() and reader.choices.tolist() == [choices for *_, choices in all_of]
    assert p.sum().item() == pytest.approx(1.0, abs=1e-5)
    many = grammar(actions=[ACTIONS[2]] * copies, current=[CURRENT[2]] * copies)
    out = respond(model, prompts[2].expand(copies, -1), many, generator=torch.Generator().manual_seed(0))
    for (_, _, choices), chance in zip(all_of, p.tolist(), strict=True):
        share = (out.choices == torch.tensor(choices)).all(1).double().mean().item()
        assert share == pytest.approx(chance, abs=4 * (chance / copies) ** 0.5)


def test_a_row_does_not_depend_on_the_others(model, prompts):
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = respond(model, prompts, grammar(), generator=generators(3, 4, 5))
    for row in range(3):
        alone = respond(
            model,
            [prompts[row]],
            grammar(actions=[ACTIONS[row]], current=[CURRENT[row]]),
            generator=generators(3 + row),
        )
        steps = alone.taken.shape[1]
        assert torch.equal(together.taken[row, :steps], alone.taken[0])
        torch.testing.assert_close(together.log_probs[row, :steps], alone.log_probs[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cache", ("growing", "paged"))
def test_any_cache_gives_the_same(cache, make_model, prompts):
    model = make_model().eval()
    usual, other = (
        respond(model, prompts, grammar(), generator=torch.Generator().manual_seed(1), cache=kind)
        for kind in ("static", cache)
    )
    assert torch.equal(usual.tokens, other.tokens)


def test_looking_for_the_end_changes_nothing(make_model):
    model, prompts = make_model(vocab_size=4).eval(), torch.zeros(3, 2, dtype=torch.int64)
    rows = Grammar([free_text(40, BlockKind.ACTION, end=3)], 3, 4)
    all_steps, fewer = (
        respond(model, prompts, rows, generator=torch.Generator().manual_seed(0), check_every=every)
        for every in (None, 4)
    )
    steps = fewer.taken.shape[1]
    assert all_steps.taken.shape[1] == 41 and steps < 41 and steps % 4 == 0
    assert torch.equal(all_steps.taken[:, :steps], fewer.taken) and not all_steps.mask[:, steps:].any()


def test_greedy_answers(model, prompts):
    out = respond(model, prompts, grammar(), temperature=0.0)
    logits = constrained_logits(model, response_hidden(model, out), out)
    assert torch.equal(logits.argmax(-1)[out.mask], out.taken[out.mask])
    torch.testing.assert_close(
        out.log_probs, constrained_log_probs(model, out).detach(), atol=2e-5, rtol=2e-5
    )


def test_free_text_ends_itself_or_is_ended(make_model, generator):
    model, limit = make_model(vocab_size=8).eval(), 5
    rows = Grammar([free_text(limit, BlockKind.ACTION, end=OVER, start=[ACT])], 200, 8)
    prompt = torch.zeros(200, 3, dtype=torch.int64)
    out = respond(model, prompt, rows, generator=generator)
    lengths = out.mask.sum(1)
    assert out.taken.shape[1] == limit + 2 and (out.taken[:, 0] == ACT).all()
    assert torch.equal(out.choices[:, 0], lengths - 3)  # without start and end, from 1 on
    assert set(lengths.tolist()) == set(range(3, limit + 3))
    last = out.taken.gather(1, lengths[:, None] - 1)[:, 0]
    assert (last == OVER).all() and ((out.taken == OVER).sum(1) == 1).all()
    assert (out.log_probs[out.mask & (torch.arange(limit + 2) == limit + 1)] == 0).all()  # it has to end


def test_what_a_pass_knows_in_front_of_each_token(model, prompts, generator):
    out = respond(model, prompts, grammar(), generator=generator)
    hidden = response_hidden(model, out)
    for row, prompt in enumerate(prompts):
        alone = model.hidden(torch.cat([prompt, out.taken[row]])[None])[0]
        expected = alone[len(prompt) - 1 : -1]
        torch.testing.assert_close(hidden[row], expected, atol=1e-5, rtol=1e-5)
    entropy = token_entropy(constrained_logits(model, hidden, out))
    assert entropy.isfinite().all() and (entropy[~out.free] == 0).all()


def test_responses_are_joined_and_divided(make_model, prompts, generator):
    model = make_model().eval()
    first = respond(model, prompts, grammar(), generator=generator)
    second = respond(
        model,
        prompts[1][None],
        grammar(actions=[[[20, 21, 22, 23, 24, 25]]], current=[[10]]),
        generator=generator,
    )
    both = join_responses([first, second])
    assert both.taken.shape[0] == 4 and both.tokens.shape[1] == 6 + both.taken.shape[1]
    log_probs = constrained_log_probs(model, both)
    torch.testing.assert_close(log_probs.detach(), both.log_probs, atol=2e-5, rtol=2e-5)
    for row in range(4):
        part = both.select(torch.tensor([row]))
        torch.testing.assert_close(
            constrained_log_probs(model, part)[0], log_probs[row], atol=1e-5, rtol=1e-5
        )
        source, i = (first, row) if row < 3 else (second, 0)
        steps = source.taken.shape[1]
        assert torch.equal(both.taken[row, :steps], source.taken[i]) and not both.mask[row, steps:].any()
        assert torch.equal(both.choices[row], source.choices[i])
    log_probs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_reader_never_looks_at_its_tensors():
    """Those of the meta device have no values: what waits for a GPU would fail."""
    rows = grammar("meta")
    reader = rows.reader()
    for _ in range(rows.longest):
        assert reader.allowed().shape == (3, VOCAB)
        assert reader.read(torch.zeros(3, dtype=torch.int64, device="meta")).shape == (3,)


def test_grammars_that_are_none(make_model, prompts):
    table, action = phrase_table([[[1], [2, 3]]]), BlockKind.ACTION
    assert torch.equal(table, torch.tensor([[[1, NONE], [2, 3]]]))
    with pytest.raises(ValueError, match="a row has phrases of several lengths; give end"):
        Block(table, action)
    with pytest.raises(ValueError, match="a phrase has end=3 in it"):
        Block(table, action, end=3)
    with pytest.raises(ValueError, match="row 1 has no phrase"):
        Block(phrase_table([[[1]], [[]]]), action)
    with pytest.raises(ValueError, match=r"block 0 has tokens outside of \[0, 3\)"):
        Grammar([Block(table, action, end=5)], 1, 3)
    with pytest.raises(ValueError, match="block 0 has phrases for 2 rows; give 3, or 1"):
        Grammar([Block(phrase_table([[[1]], [[2]]]), action)], 3, 8)
    only = Block(table, action, end=0, requires=torch.tensor([[0, 0]]))
    with pytest.raises(
        ValueError, match="row 0 of block 1 has no phrase for a choice before it; see requires"
    ):
        Grammar([Block(table, action, end=0), only], 1, 8)
    with pytest.raises(ValueError, match="row 0 of block 0 has no phrase"):
        Grammar([only], 1, 8)
    Grammar([Block(table[:, :1], action, end=0), only], 1, 8)
    with pytest.raises(ValueError, match="grammar has 3 rows, but there are 1 prompts"):
        respond(make_model(), prompts[:1], grammar())
    assert ANY < NONE < 0
