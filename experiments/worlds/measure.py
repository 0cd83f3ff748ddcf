"""The tables of README.md: ``python -m flashlla.experiments.worlds.measure``. A minute on one core."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import pandas

from . import WORLDS, PromptStyle, expert_turns, noisy_codes, tokenizer

EPISODES = 256
STEPS = 150  # that are timed
BATCH = 128


def sizes(name: str) -> dict[str, object]:
    """Episodes of the expert in numbers."""
    style = PromptStyle(plan=True)
    env = gymnasium.make_vec(
        f"flashlla/{name}-v0", num_envs=EPISODES, observation="text", autoreset="Disabled", prompt=style
    )
    tokens = tokenizer()
    turns = expert_turns(env, seed=0)
    prompts = [turn.prompt for turn in turns]
    seen = [prompt.split("\nnow: ")[1].split("\nsubgoal: ")[0] for prompt in prompts]
    actions = [prompt.rsplit("\nactions: ", 1)[1].count(";") + 1 for prompt in prompts]
    lengths = [len(tokens.encode(text)) for text in seen]
    prompt_lengths = [len(tokens.encode(text)) for text in prompts]
    switches = sum("SWITCH" in turn.answer for turn in turns)
    return {
        "world": name,
        "limit": env.max_steps,
        "success": f"{np.mean([turn.success for turn in turns]):.0%}",
        "steps": f"{len(turns) / EPISODES:.1f}",
        "most steps": max(turn.step for turn in turns) + 1,
        "subgoals": f"{switches / EPISODES:.1f}",
        "actions": f"{np.mean(actions):.1f}",
        "characters": f"{np.mean([len(text) for text in seen]):.0f}",
        "tokens": f"{np.mean(lengths):.0f}",
        "most tokens": max(lengths),
        "characters of a prompt": f"{np.mean([len(text) for text in prompts]):.0f}",
        "tokens of a prompt": f"{np.mean(prompt_lengths):.0f}",
        "most tokens of a prompt": max(prompt_lengths),
    }


def successes(name: str, **knobs: int) -> dict[str, object]:
    """Share of successes, and mean steps, when a share of the expert's actions is random."""
    env = gymnasium.make_vec(f"flashlla/{name}-v0", num_envs=EPISODES, autoreset="Disabled", **knobs)
    found: dict[str, object] = {"world": name, **knobs}
    for share in (0.0, 0.2, 0.5, 1.0):
        rng, running = np.random.default_rng(0), True
        env.reset(seed=0)
        while running:
            codes, _ = noisy_codes(env.world, env.state, share, rng)
            _, _, terminated, truncated, info = env.step(env.index_of(codes))
            running = not (terminated | truncated).all()
        found[f"{share:.0%} random"] = f"{info['success'].mean():.0%} in {info['steps'].mean():.1f}"
    return found


def speed(name: str) -> dict[str, object]:
    """Milliseconds of processor time that a step of all episodes takes, with random admissible actions."""
    found: dict[str, object] = {"world": name}
    for observation in ("array", "text", "tokens"):
        env = gymnasium.make_vec(f"flashlla/{name}-v0", num_envs=BATCH, observation=observation)
        rng, spent, begun = np.random.default_rng(0), [], 0
        _, info = env.reset(seed=0)
        for _ in range(STEPS):
            mask = info["action_mask"]
            actions = np.where(mask, rng.random(mask.shape), -1).argmax(1)
            begin = time.process_time()
            *_, info = env.step(actions)
            spent.append(1e3 * (time.process_time() - begin))
            begun += int((info["steps"] == 0).sum())
        found[observation] = f"{np.mean(spent):.1f} ({np.median(spent):.1f})"
    return found | {"episodes begun a step": f"{begun / STEPS:.1f}"}


def main() -> None:
    """Print the tables."""
    for measured in (sizes, successes, speed):
        print(pandas.DataFrame([measured(name) for name in WORLDS]).to_string(index=False), "\n")
    longer = [successes("MiniHouse", subtasks=subtasks, max_steps=99) for subtasks in (1, 2, 3, 4)]
    print(pandas.DataFrame(longer).to_string(index=False))


if __name__ == "__main__":
    main()
