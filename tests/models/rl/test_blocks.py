"""Advantages of tokens, and that nothing trains the tokens that nobody has chosen."""

import torch

from flashlla.models.rl import (
    BlockKind,
    block_advantages,
    clipped_surrogate,
    masked_mean,
    spread,
    token_log_probs,
)

OTHER, SWITCH, SUBGOAL, ACTION = BlockKind
KINDS = torch.tensor(
    [
        [OTHER, SWITCH, SUBGOAL, SUBGOAL, ACTION, OTHER, SWITCH, SUBGOAL, SUBGOAL, ACTION, ACTION, OTHER],
        [OTHER, OTHER, SWITCH, SUBGOAL, ACTION, OTHER, OTHER, SWITCH, SUBGOAL, ACTION, OTHER, OTHER],
    ]
)
TURNS = torch.tensor([[0] * 5 + [1] * 7, [0] * 5 + [1] * 7])
BOUNDARIES = torch.tensor([[True, False], [True, True]])
COPIED = torch.zeros(2, 12, dtype=torch.bool)
COPIED[0, 7:9] = True  # the first row keeps its subgoal in its second turn


LEVELS = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]], [[5.0, 6.0], [7.0, 8.0]]])


def advantages():
    return block_advantages(KINDS, TURNS, *LEVELS, BOUNDARIES)


def test_each_block_gets_its_own():
    found = advantages()
    expected = torch.tensor(
        [[0.0, 1, 10, 10, 5, 0, 2, 0, 0, 6, 6, 0], [0.0, 0, 3, 30, 7, 0, 0, 4, 40, 8, 0, 0]]
    )
    assert torch.equal(found.advantages, expected)
    assert torch.equal(found.mask, (KINDS != OTHER) & ~COPIED)


def test_a_row_may_be_one_turn():
    """Turns as rows of their own give what they give in one row."""
    whole = advantages()
    kinds = torch.cat([KINDS[:, :5], KINDS[:, 6:11]])
    by_row = LEVELS.mT.reshape(3, 4, 1)  # first turns, then second ones
    starts = torch.tensor([[True], [True], [False], [True]])
    found = block_advantages(kinds, torch.zeros_like(kinds), *by_row, starts)
    for part, all_ in zip(found, whole, strict=True):
        assert torch.equal(part, torch.cat([all_[:, :5], all_[:, 6:11]]))


def test_spread_gives_a_token_what_its_turn_has():
    assert torch.equal(spread(LEVELS[0], TURNS)[1], torch.tensor([3.0] * 5 + [4.0] * 7))


def test_copied_subgoals_have_a_gradient_of_exactly_zero(generator):
    logits = torch.randn(2, 12, 20, generator=generator, requires_grad=True)
    tokens = torch.randint(20, (2, 12), generator=generator)
    log_probs = token_log_probs(logits, tokens)
    found = advantages()
    loss = clipped_surrogate(log_probs, log_probs.detach(), found.advantages)
    masked_mean(loss, found.mask).backward()
    norms = logits.grad.abs().sum(-1)
    assert (norms[COPIED] == 0).all() and (norms[KINDS == OTHER] == 0).all()
    assert (norms[found.mask] > 0).all()


def test_a_model_learns_from_each_block_by_its_own_advantage(make_model, generator):
    """The gradient of all weights is that of a sum which is written out, and copied tokens are not in it."""
    model = make_model(vocab_size=20, dtype=torch.float64)
    tokens = torch.randint(20, (2, 13), generator=generator)
    parameters = list(model.parameters())

    def log_probs():
        return token_log_probs(model(tokens[:, :-1]), tokens[:, 1:])

    found, taken, total = advantages(), log_probs(), 0.0
    for row, column in KINDS.nonzero().tolist():
        kind, turn = KINDS[row, column].item(), TURNS[row, column].item()
        level = {SWITCH: LEVELS[0], SUBGOAL: LEVELS[1], ACTION: LEVELS[2]}[kind]
        if kind != SUBGOAL or BOUNDARIES[row, turn]:
            total = total - taken[row, column] * level[row, turn]
    expected = torch.autograd.grad(total, parameters)
    taken = log_probs()
    loss = clipped_surrogate(taken, taken.detach(), found.advantages.double())
    for mine, by_hand in zip(
        torch.autograd.grad((loss * found.mask).sum(), parameters), expected, strict=True
    ):
        torch.testing.assert_close(mine, by_hand)
    taken = log_probs()
    copied = (clipped_surrogate(taken, taken.detach(), found.advantages.double()) * COPIED).sum()
    assert all((g == 0).all() for g in torch.autograd.grad(copied, parameters))
