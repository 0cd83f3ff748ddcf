"""HAE against sums that are written out, and against the exact gradient of an enumerated plan-execute MDP."""

import itertools

import pytest
import torch

from flashlla.experiments.hiper.toy import PlanExecute, mean_and_variance
from flashlla.models.rl import (
    generalized_advantages,
    hierarchical_advantages,
    masked_mean,
    switch_advantages,
    termination_advantages,
    whiten,
)

DECAYS = (0.0, 0.5, 0.95, 1.0)


@pytest.fixture
def arrays(generator):
    """Rewards, V_low, V_high of three trajectories of seven turns."""
    return torch.randn(3, 3, 7, generator=generator, dtype=torch.float64)


@pytest.fixture
def switches():
    rows = ([0, 0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0])
    return torch.tensor(rows, dtype=torch.bool)


def written_out(rewards, switches, low, high, discount, low_decay, high_decay, last_low, last_high):
    """One trajectory, by the definition: loops over segments."""
    turns = len(rewards)
    starts = [0] + [t for t in range(1, turns) if switches[t]] + [turns]
    of_actions, of_subgoals, carried = [0.0] * turns, [0.0] * turns, 0.0
    for k in range(len(starts) - 2, -1, -1):
        begin, end = starts[k], starts[k + 1]
        length, at_end = end - begin, end == turns
        inside = 0.0
        for t in range(end - 1, begin - 1, -1):
            behind = low[t + 1] if t + 1 < end else last_low if at_end else high[end]
            inside = rewards[t] + discount * behind - low[t] + discount * low_decay * inside
            of_actions[t] = inside
        behind = last_high if at_end else high[end]
        gained = sum(discount**j * rewards[begin + j] for j in range(length))
        error = gained + discount**length * behind - high[begin]
        carried = error + discount**length * high_decay * carried
        of_subgoals[begin] = carried
    return torch.tensor(of_actions, dtype=torch.float64), torch.tensor(of_subgoals, dtype=torch.float64)


@pytest.mark.parametrize("cut_off", (False, True))
def test_both_levels_are_as_defined(cut_off, arrays, switches):
    rewards, low, high = arrays
    last_low, last_high = arrays[0, :, 0], arrays[1, :, 1]
    options = {"discount": 0.8, "low_decay": 0.9, "high_decay": 0.7}
    lasts = {"last_low": last_low, "last_high": last_high} if cut_off else {}
    found = hierarchical_advantages(rewards, switches, low, high, **options, **lasts)
    for row in range(3):
        ends = (last_low[row], last_high[row]) if cut_off else (0.0, 0.0)
        expected = written_out(rewards[row], switches[row], low[row], high[row], 0.8, 0.9, 0.7, *ends)
        torch.testing.assert_close(found.low[row], expected[0])
        torch.testing.assert_close(found.high[row], expected[1])
    assert torch.equal(found.boundaries, switches | (torch.arange(7) == 0))
    torch.testing.assert_close(found.low_targets, found.low + low)
    torch.testing.assert_close(found.high_targets, torch.where(found.boundaries, found.high + high, 0.0))


def test_turns_that_are_masked_might_as_well_not_be_there(arrays, switches):
    rewards, low, high = arrays
    mask = torch.tensor(
        [[1, 1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool
    )
    last = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    spoilt = (x.masked_fill(~mask, torch.nan) for x in (rewards, low, high))
    rewards_, low_, high_ = spoilt
    options = {"discount": 0.8, "low_decay": 0.9, "high_decay": 0.7}
    found = hierarchical_advantages(
        rewards_, switches, low_, high_, mask, **options, last_low=last, last_high=last
    )
    third = termination_advantages(rewards_, switches, high_, low_, mask, discount=0.8, last=last)
    for x in (*found, third):
        assert (x[~mask] == 0).all()
    for row in range(2):
        kept = mask[row]
        r, s, v, h = (x[row, kept][None] for x in (rewards, switches, low, high))
        lasts = {"last_low": last[row : row + 1], "last_high": last[row : row + 1]}
        alone = hierarchical_advantages(r, s, v, h, **options, **lasts)
        for whole, part in zip(found, alone, strict=True):
            torch.testing.assert_close(whole[row, kept], part[0])
        alone = termination_advantages(r, s, h, v, discount=0.8, last=last[row : row + 1])
        torch.testing.assert_close(third[row, kept], alone[0])


def test_high_values_are_read_where_segments_begin(arrays, switches):
    rewards, low, high = arrays
    begins = switches | (torch.arange(7) == 0)
    spoilt = high.masked_fill(~begins, torch.nan)
    for whole, part in zip(
        hierarchical_advantages(rewards, switches, low, high),
        hierarchical_advantages(rewards, switches, low, spoilt),
        strict=True,
    ):
        torch.testing.assert_close(whole, part)


@pytest.mark.parametrize("decay", DECAYS)
def test_without_switches_low_is_the_flat_estimate(decay, arrays):
    rewards, low, high = arrays
    never, last = torch.zeros_like(rewards, dtype=torch.bool), low[:, 2]
    found = hierarchical_advantages(
        rewards, never, low, high, discount=0.9, low_decay=decay, last_low=last, last_high=last
    )
    flat = generalized_advantages(rewards, low, discount=0.9, decay=decay, last_values=last)
    torch.testing.assert_close(found.low, flat)
    assert (found.high[:, 1:] == 0).all()
    whole = generalized_advantages(rewards, high, discount=0.9, decay=1.0, last_values=last)
    torch.testing.assert_close(found.high[:, 0], whole[:, 0])  # one segment: its return less V_high


@pytest.mark.parametrize("decay", DECAYS)
def test_with_switches_everywhere_high_is_the_flat_estimate_and_low_has_one_step(decay, arrays):
    rewards, low, high = arrays
    always, last = torch.ones_like(rewards, dtype=torch.bool), low[:, 2]
    found = hierarchical_advantages(
        rewards,
        always,
        low,
        high,
        discount=0.9,
        low_decay=decay,
        high_decay=decay,
        last_low=last,
        last_high=last,
    )
    flat = generalized_advantages(rewards, high, discount=0.9, decay=decay, last_values=last)
    torch.testing.assert_close(found.high, flat)
    following = torch.cat([high[:, 1:], last[:, None]], 1)
    torch.testing.assert_close(found.low, rewards + 0.9 * following - low)


def test_without_a_value_behind_segments_each_is_an_episode(arrays, switches):
    rewards, low, high = arrays
    options = {"discount": 0.9, "low_decay": 0.8}
    found = hierarchical_advantages(
        rewards, switches, low, high, **options, boundary_values=torch.zeros_like(high)
    )
    for row, starts in enumerate(([0, 2, 5, 7], [0, 1, 6, 7], [0, 7])):
        for begin, end in itertools.pairwise(starts):
            alone = generalized_advantages(
                rewards[row, begin:end], low[row, begin:end], discount=0.9, decay=0.8
            )
            torch.testing.assert_close(found.low[row, begin:end], alone)
    usual = hierarchical_advantages(rewards, switches, low, high, **options)
    torch.testing.assert_close(found.high, usual.high)


def test_advantages_of_switches(arrays, switches):
    rewards, low, high = arrays
    chances = torch.full_like(rewards, 0.3)
    paper = switch_advantages(switches, chances, high, low)
    expected = torch.where(switches, 0.7, -0.3) * (high - low)
    torch.testing.assert_close(paper[:, 1:], expected[:, 1:])
    assert (paper[:, 0] == 0).all()
    released = termination_advantages(rewards, switches, high, low, discount=0.9)
    whole = hierarchical_advantages(rewards, switches, low, high, discount=0.9, low_decay=1.0)
    torch.testing.assert_close(released, whole.low)  # with V_low in place of the third value


# ---- against the exact gradient --------------------------------------------------------------------------


def estimates(mdp, made, decay, *, high_decay=None, values=None):
    """Gradients of all trajectories, by name: HAE with both kinds of switch advantages, and the flat estimate
    on U and on values of states alone.
    """
    low, high, kept, before = mdp.read(values or mdp.values(mdp.policy), made)
    options = {"discount": mdp.discount}
    hae = hierarchical_advantages(
        made.rewards,
        made.switches,
        low,
        high,
        made.mask,
        low_decay=decay,
        high_decay=decay if high_decay is None else high_decay,
        **options,
    )
    chances = mdp.policy.switch.softmax(-1)[made.states, made.old, 1]
    paper = switch_advantages(made.switches, chances, high, kept, made.mask)
    released = termination_advantages(made.rewards, made.switches, high, before, made.mask, **options)

    def flat(values):
        advantages = generalized_advantages(made.rewards, values, made.mask, decay=decay, **options)
        return mdp.scores(made, undecided(advantages), advantages, advantages)

    def undecided(advantages):
        """The first turn has no old subgoal, and its switch no logits."""
        return advantages.masked_fill(torch.arange(mdp.horizon) == 0, 0.0)

    return {
        "paper": mdp.scores(made, paper, hae.high, hae.low),
        "released": mdp.scores(made, undecided(released), hae.high, hae.low),
        "flat": flat(before),
        "states": flat(mdp.state_values(made)),
    }


@pytest.fixture(scope="module", params=((3, 2, 2, 3), (2, 2, 3, 3), (2, 2, 2, 4)))
def enumerated(request):
    *sizes, horizon = request.param
    mdp = PlanExecute(tuple(sizes), horizon, discount=0.9, dense=0.3)
    return mdp, mdp.enumerate()


def test_trajectories_are_all_that_can_be(enumerated):
    mdp, made = enumerated
    torch.testing.assert_close(made.chances.sum().item(), 1.0)
    discounts = mdp.discount ** torch.arange(mdp.horizon, dtype=torch.float64)
    mean = made.chances @ (made.rewards * discounts).sum(1)
    torch.testing.assert_close(mean, mdp.expected_return(mdp.policy))
    drawn = mdp.sample(4000, torch.Generator().manual_seed(0))
    error = (drawn.rewards * discounts).sum(1).std().item() / 4000**0.5
    assert (drawn.rewards * discounts).sum(1).mean().item() == pytest.approx(mean.item(), abs=3 * error)


@pytest.mark.parametrize("decay", DECAYS)
def test_with_exact_values_hae_is_without_bias(decay, enumerated):
    mdp, made = enumerated
    true, found = mdp.gradient(), estimates(mdp, made, decay)
    for name in ("paper", "released", "flat"):
        torch.testing.assert_close(made.chances @ found[name], true, atol=1e-12, rtol=1e-9)
    bias = (made.chances @ found["states"] - true).norm() / true.norm()
    assert (bias < 1e-9) == (decay == 1.0)  # values of states do not see the subgoal


def test_a_trajectory_that_is_cut_off_goes_on_with_u(enumerated):
    """Without the last turn, and with U behind the one before, advantages of the first turn are exact."""
    mdp, made = enumerated
    values = mdp.values(mdp.policy)
    low, high, _, before = mdp.read(values, made)
    last = before[:, -1].masked_fill(~made.mask[:, -1], 0.0)
    shorter = (x[:, :-1] for x in (made.rewards, made.switches, low, high, made.mask))
    found = hierarchical_advantages(
        *shorter, discount=mdp.discount, low_decay=0.9, high_decay=0.9, last_low=last, last_high=last
    )
    for state, subgoal in itertools.product(range(mdp.states - 1), range(mdp.subgoals)):
        here = (made.states[:, 0] == state) & (made.subgoals[:, 0] == subgoal)
        share = made.chances[here] / made.chances[here].sum()
        exact = values.low[0, state, subgoal] - values.high[0, state]
        torch.testing.assert_close(share @ found.high[here, 0], exact)
        assert (share @ found.low[here, 0]).abs() < 1e-12


@pytest.mark.parametrize("decay", (0.95, 1.0))
def test_near_a_decay_of_one_hae_has_less_variance_than_the_flat_estimate(decay, enumerated):
    mdp, made = enumerated
    found = {k: mean_and_variance(g, made.chances)[1] for k, g in estimates(mdp, made, decay).items()}
    assert found["paper"] < 0.95 * found["flat"] and found["paper"] < 0.95 * found["states"]
    assert found["paper"] < found["released"]  # which draws what the paper's form is the mean of


@pytest.mark.parametrize("seed", range(3))
def test_variances_over_long_trajectories(seed):
    """16 turns, a reward at the end: HAE needs fewer samples at 1 and 0.95; at 0 it does not."""
    mdp = PlanExecute((6, 3, 3), 16, seed=seed)
    made, ratios = mdp.sample(2000, torch.Generator().manual_seed(seed)), {}
    for decay in (0.0, 0.95, 1.0):
        found = estimates(mdp, made, decay)
        variance = {k: mean_and_variance(g, made.chances)[1] for k, g in found.items()}
        ratios[decay] = variance["flat"] / variance["paper"]
    assert ratios[1.0] > 1.8 and ratios[0.95] > 1.4 and ratios[0.0] < 1.1


def test_wrong_high_values_bias_low_and_not_high(enumerated):
    mdp, made = enumerated
    values, true = mdp.values(mdp.policy), mdp.gradient()
    parts = [x.numel() for x in mdp.policy]
    noise = torch.randn(values.high.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    biases = {name: [] for name in ("high", "low", "flat")}
    for size in (0.0, 0.2, 0.4):
        wrong = values._replace(
            high=values.high + size * noise, before=values.before + size * noise[..., None]
        )
        found = estimates(mdp, made, 1.0, values=wrong)
        hae, flat = (made.chances @ found[name] - true for name in ("paper", "flat"))
        _, of_subgoals, of_actions = hae.split(parts)
        for name, bias in (("high", of_subgoals), ("low", of_actions), ("flat", flat)):
            biases[name].append(bias.norm().item())
    assert max(biases["high"]) < 1e-12 and max(biases["flat"]) < 1e-12
    assert biases["low"][0] < 1e-12 and biases["low"][1] > 1e-5
    assert biases["low"][2] == pytest.approx(2 * biases["low"][1])


def test_wrong_low_values_alone_bias_nothing_at_a_decay_of_one(enumerated):
    mdp, made = enumerated
    values = mdp.values(mdp.policy)
    noise = torch.randn(values.low.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = estimates(mdp, made, 1.0, values=values._replace(low=values.low + noise))
    torch.testing.assert_close(made.chances @ found["released"], mdp.gradient(), atol=1e-12, rtol=1e-9)
    switch = (made.chances @ found["paper"] - mdp.gradient())[: mdp.policy.switch.numel()]
    assert switch.norm() > 1e-3  # the paper's form believes V_low


def test_levels_are_whitened_each_on_its_own(arrays, switches):
    found = hierarchical_advantages(arrays[0], switches, *arrays[1:])
    high = whiten(found.high, found.boundaries)
    assert masked_mean(high, found.boundaries).abs() < 1e-9 and (high[~found.boundaries] == 0).all()
