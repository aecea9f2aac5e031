"""NPO's synthetic task (arXiv 2404.05868, section 4 and appendix D) with our own losses, on a CPU, in minutes.

    python benchmarks/npo_synthetic.py              tables, claims and docs/npo-synthetic.png
    python benchmarks/npo_synthetic.py --json       the numbers

A logistic model on 128 fixed random features learns 1000 retain and 200 forget samples; a second one learns the retain
samples alone. Each method then unlearns the forget samples from the first by gradient descent. Distance on a
distribution: mean KL(retrained || unlearned) over 1000 fresh samples of it, in nats; both distances 0 would be perfect.
Both models start at zero and are trained alike (appendix D). Sums of two losses have weights 1 and 1.
The paper's settings and number of steps are used as they are printed (its table 1); nothing is tuned here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.engine.scores import Scores
from align.objectives import NLL, NPO, GradAscent, IdkDPO, Objective, Terms, WeightedSum

SEEDS = (1000, 2000, 3000, 4000, 5000)
CLOSE, CLOSE_STEPS = 0.005, 1200  # the paper's "small forget distance" and by when it is reached
LEVELS = 20  # forget distances at which fronts are compared, from the start to the least that any method reaches
LINE = 4 / 3  # how much a straight line through zero grows over the last quarter of its length


@dataclass(frozen=True)
class Size:
    """How large the task is; the defaults are the paper's."""

    dimension: int = 16
    features: int = 128
    retain: int = 1000
    forget: int = 200
    fresh: int = 1000
    pretrain_steps: int = 20_000
    steps: int = 2000
    every: int = 1  # steps between two measurements; with more, fronts of fast methods look worse than they are


@dataclass(frozen=True)
class Method:
    """An objective and its learning rate."""

    objective: Objective
    learning_rate: float


def methods(alpha: int) -> dict[str, Method]:
    """The paper's six methods with the settings of its table 1 for ``alpha`` 1 or 0."""
    slow, fast, npo_beta, dpo_beta = {1: (5e-4, 5e-3, 1.0, 0.1), 0: (1e-4, 5e-2, 10.0, 5.0)}[alpha]

    def and_retain(objective: Objective) -> Objective:
        return WeightedSum(((objective, 1.0), (NLL(branch="retain"), 1.0)))

    npo = NPO(beta=npo_beta)
    return {
        "GA": Method(GradAscent(), slow),
        "GA+RT": Method(and_retain(GradAscent()), slow),
        "NPO": Method(npo, fast),
        "NPO+RT": Method(and_retain(npo), fast),
        "DPO+RT": Method(and_retain(IdkDPO(beta=dpo_beta)), fast),
        # two means that are added, as in the paper's section 4; its language models get one mean over all tokens
        "IDK+RT": Method(and_retain(NLL(branch="alternate")), slow),
    }


# ---- the task


@dataclass(frozen=True)
class Instance:
    """One draw of the task with its two trained models, all float64.

    ``branches`` holds features [n, features] by branch, each row times +1 where its label is 1 and -1 where it is 0, so
    that log p(label) is logsigmoid(row @ weights); ``fresh`` holds plain features of new samples by distribution.
    """

    branches: Mapping[str, Tensor]
    fresh: Mapping[str, Tensor]
    start: Tensor
    retrained: Tensor


def draw(seed: int, alpha: float, size: Size) -> Instance:
    """An instance of the task; ``alpha`` is how far the two distributions lie from the origin, on opposite sides."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def sample(count: int, side: int) -> tuple[Tensor, Tensor]:
        """Features and labels (-1 or +1); side +1 are forget samples, which favour 1, and -1 retain samples."""
        noise = normal(count, size.dimension)
        chance = torch.sigmoid(side * (noise.sum(1) / size.dimension**0.5 + 1))
        labels = 2.0 * torch.bernoulli(chance, generator=random) - 1
        return torch.relu((noise + side * alpha) @ projection.T), labels

    projection = normal(size.features, size.dimension) / size.dimension**0.5
    retain, retain_labels = sample(size.retain, -1)
    forget, forget_labels = sample(size.forget, 1)
    unsure = 2.0 * torch.randint(2, (size.forget,), generator=random) - 1  # "I don't know": a coin's label
    branches = {
        "forget": forget * forget_labels[:, None],
        "alternate": forget * unsure[:, None],
        "retain": retain * retain_labels[:, None],
    }
    fresh = {"retain": sample(size.fresh, -1)[0], "forget": sample(size.fresh, 1)[0]}
    start = pretrain(torch.cat([branches["forget"], branches["retain"]]), size.pretrain_steps)
    return Instance(branches, fresh, start, pretrain(branches["retain"], size.pretrain_steps))


def pretrain(rows: Tensor, steps: int, learning_rate: float = 0.05) -> Tensor:
    """Weights [features] after full-batch gradient descent on the mean of -logsigmoid(rows @ weights), from zero."""
    weights = rows.new_zeros(rows.shape[1])
    turned = rows.T.contiguous()  # the gradient by hand: 400,000 of these steps are most of the work
    for _ in range(steps):
        weights += learning_rate / rows.shape[0] * (turned @ torch.sigmoid(-(rows @ weights)))
    return weights


def distance(features: Tensor, retrained: Tensor, weights: Tensor) -> float:
    """Mean over samples of KL(retrained || unlearned) between the two label distributions, in nats."""
    target, now = features @ retrained, features @ weights
    yes, no = logsigmoid(target), logsigmoid(-target)
    return float((yes.exp() * (yes - logsigmoid(now)) + no.exp() * (no - logsigmoid(-now))).mean())


# ---- unlearning


def scores(rows: Mapping[str, Tensor], weights: Tensor) -> Scores:
    """Scores in which every sample is a sequence of one token, its label."""
    sequences, begin = {}, 0
    for branch, values in rows.items():
        sequences[branch] = torch.arange(begin, begin + len(values))
        begin += len(values)
    logp = logsigmoid(torch.cat(list(rows.values())) @ weights)
    return Scores({"logp": logp}, torch.arange(begin), sequences, torch.ones(begin, dtype=torch.long))


def loss_of(terms: Terms, rows: Mapping[str, Tensor]) -> Tensor:
    """The scalar that the terms mean on a full batch; an example is a forget sample, whatever the retain set's size."""
    divisors = {"examples": len(rows["forget"])} | {f"tokens:{branch}": len(rows[branch]) for branch in rows}
    return torch.stack([term.weight * term.losses.sum() / divisors[term.unit] for term in terms.losses]).sum()


def unlearn(instance: Instance, method: Method, size: Size) -> Tensor:
    """Forget and retain distance every ``size.every`` steps, the start included, [steps / every + 1, 2]."""
    rows = {"forget": instance.branches["forget"]}
    rows |= {branch: instance.branches[branch] for branch in method.objective.branches}
    reference = scores(rows, instance.start) if method.objective.needs_reference else None
    weights = instance.start.clone().requires_grad_()
    places = (instance.fresh["forget"], instance.fresh["retain"])
    path = []
    for step in range(size.steps + 1):
        if step % size.every == 0:
            now = weights.detach()
            path.append([distance(features, instance.retrained, now) for features in places])
        loss = loss_of(method.objective(scores(rows, weights), reference), rows)
        (slope,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            weights -= method.learning_rate * slope
    return torch.tensor(path, dtype=torch.float64)


# ---- what it shows


@dataclass(frozen=True)
class Result:
    """Trajectories of every method for one alpha, [seeds, points, 2], and what the retrained model says by seed.

    ``retrained`` is its mean probability of label 1 on fresh forget samples: where it is near 0 it is sure, and can be
    matched by pushing the forget labels down; where it is not, no such push ends at it.
    """

    paths: dict[str, Tensor]
    retrained: list[float]


def measure(alpha: int, seeds: tuple[int, ...], size: Size) -> Result:
    """All methods on all seeds."""
    found: dict[str, list[Tensor]] = {}
    retrained = []
    for seed in seeds:
        began = time.perf_counter()
        instance = draw(seed, alpha, size)
        retrained.append(float(torch.sigmoid(instance.fresh["forget"] @ instance.retrained).mean()))
        for name, method in methods(alpha).items():
            found.setdefault(name, []).append(unlearn(instance, method, size))
        print(f"  alpha {alpha} seed {seed}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return Result({name: torch.stack(values) for name, values in found.items()}, retrained)


def front(path: Tensor, levels: Tensor) -> Tensor:
    """Least retain distance at the points of ``path`` [points, 2] within each forget distance; infinite if none is."""
    reached = path[None, :, 0] <= levels[:, None]
    return torch.where(reached, path[None, :, 1], torch.inf).min(1).values


def wins(paths: Mapping[str, Tensor], name: str) -> Tensor:
    """By seed, the share of levels at which the front of ``name`` is the lowest of all fronts in ``paths``."""
    shares = []
    for seed, path in enumerate(paths[name]):
        low = min(float(other[seed, :, 0].min()) for other in paths.values())
        start = float(path[0, 0])
        levels = start * (low / start) ** (torch.arange(1, LEVELS + 1) / LEVELS).double()
        levels[-1] = low  # rounding must not put it out of everyone's reach
        others = [front(rival[seed], levels) for rival_name, rival in paths.items() if rival_name != name]
        shares.append((front(path, levels) < torch.stack(others).min(0).values).double().mean())
    return torch.stack(shares)


def first_close(path: Tensor, every: int) -> list[int | None]:
    """By seed, the first measured step whose forget distance is below ``CLOSE``."""
    close = path[..., 0] < CLOSE
    return [int(row.int().argmax()) * every if row.any() else None for row in close]


def growth(path: Tensor, since: float = 0.0) -> Tensor:
    """By seed, the last retain distance over the one at a share ``since`` of the steps."""
    return path[:, -1, 1] / path[:, int((path.shape[1] - 1) * since), 1]


def summary(path: Tensor, every: int) -> dict[str, Any]:
    """Means over seeds of the last and of the least distances, and when the forget distance gets small."""
    return {
        "final": path[:, -1].mean(0).tolist(),
        "best": path.min(1).values.mean(0).tolist(),
        "best_by_seed": path.min(1).values.tolist(),
        "retain_at_best_forget": float(path[torch.arange(len(path)), path[..., 0].argmin(1), 1].mean()),
        "close_steps": first_close(path, every),
    }


def report_of(results: Mapping[int, Result], seeds: tuple[int, ...], size: Size) -> dict[str, Any]:
    """The numbers, by alpha and method, and the claims."""
    alphas: dict[str, Any] = {}
    for alpha, result in results.items():
        starts = next(iter(result.paths.values()))[:, 0]
        alphas[str(alpha)] = {
            "start": starts.mean(0).tolist(),
            "start_by_seed": starts.tolist(),
            "retrained_says_1": result.retrained,
            "methods": {
                name: summary(path, size.every) | {"front_share": wins(result.paths, name).tolist()}
                for name, path in result.paths.items()
            },
        }
    return {"seeds": list(seeds), "steps": size.steps, "alphas": alphas, "claims": claims(results, size)}


def claims(results: Mapping[int, Result], size: Size) -> list[dict[str, Any]]:
    """What the paper's section 4.2 says. ``holds`` judges the path averaged over seeds, as the paper does."""
    seeds = {alpha: result.paths for alpha, result in results.items()}
    means = {
        alpha: {name: path.mean(0, keepdim=True) for name, path in paths.items()} for alpha, paths in seeds.items()
    }
    last = int(min(CLOSE_STEPS, size.steps) / size.every) + 1

    def close(paths: Mapping[str, Tensor], name: str) -> Tensor:
        return (paths[name][:, :last, 0] < CLOSE).any(1)

    def diverges(paths: Mapping[str, Tensor], name: str) -> Tensor:
        return (growth(paths[name]) > 5) & (growth(paths[name], 0.75) > LINE)

    def levels_off(paths: Mapping[str, Tensor], name: str) -> Tensor:
        return growth(paths[name], 0.75) < LINE

    def leads(paths: Mapping[str, Tensor], name: str) -> Tensor:
        rivals = paths if name == "NPO+RT" else {rival: paths[rival] for rival in ("GA", "NPO")}
        return wins(rivals, name) > 0.5

    def smallest(paths: Mapping[str, Tensor], name: str) -> Tensor:
        least = {rival: path.min(1).values for rival, path in paths.items()}
        return torch.stack([(least[name] <= other).all(1) for other in least.values()]).all(0)

    said = []
    near = f"a forget distance below {CLOSE} within {CLOSE_STEPS} steps"
    plan: list[tuple[int, str, str, Callable[[Mapping[str, Tensor], str], Tensor]]] = [
        *((1, name, "has a retain distance that diverges", diverges) for name in ("GA", "GA+RT")),
        *((1, name, "has a retain distance that levels off", levels_off) for name in ("NPO+RT", "DPO+RT")),
        *((1, name, f"reaches {near}", close) for name in methods(1) if name != "IDK+RT"),
        (1, "IDK+RT", f"does not reach {near}", lambda paths, name: ~close(paths, name)),
        (1, "NPO+RT", "has the best front of all", leads),
        (1, "NPO", "has a better front than GA", leads),
        (0, "NPO+RT", "attains the smallest forget and the smallest retain distance", smallest),
    ]
    for alpha, name, text, test in plan:
        tested = size.steps >= CLOSE_STEPS or near not in text
        holds = bool(test(means[alpha], name)) if tested else None
        count = int(test(seeds[alpha], name).sum()) if tested else None
        said.append({"claim": f"alpha {alpha}: {name} {text}", "holds": holds, "seeds": count})
    return said


def table(report: Mapping[str, Any]) -> str:
    """The report for people."""
    count = len(report["seeds"])
    lines = []
    for alpha, part in report["alphas"].items():
        starts, sure = part["start_by_seed"], part["retrained_says_1"]
        lines += [
            f"alpha {alpha}: means over {count} seeds of the distances on forget and retain samples, in nats",
            "  seed by seed: start on forget " + " ".join(f"{start[0]:.2f}" for start in starts),
            "                retrained model's p(1) on forget " + " ".join(f"{chance:.2f}" for chance in sure),
            f"                 {'at the end':^18}{'least of each':^18}  retain at  lowest  steps to forget",
            f"                 {'forget':>9}{'retain':>9}{'forget':>9}{'retain':>9}  least forg.  front  below {CLOSE}",
        ]
        for name, row in part["methods"].items():
            cells = "".join(f"{value:9.4f}" for key in ("final", "best") for value in row[key])
            share = sum(row["front_share"]) / count
            close = " ".join("-" if step is None else str(step) for step in row["close_steps"])
            lines.append(f"  {name:15}{cells}  {row['retain_at_best_forget']:9.4f}{share:8.0%}  {close}")
    words = {True: "holds", False: "does not hold", None: "not tested"}
    for claim in report["claims"]:
        on = "" if claim["seeds"] is None else f" ({claim['seeds']} of {count} seeds)"
        lines.append(f"{words[claim['holds']]:>13}: {claim['claim']}{on}")
    return "\n".join(lines)


# Okabe and Ito's colours, which stay apart for colour-blind readers; a broken line has no retain term
_LINES = {
    "GA": ("#D55E00", "--"),
    "GA+RT": ("#D55E00", "-"),
    "NPO": ("#0072B2", "--"),
    "NPO+RT": ("#0072B2", "-"),
    "DPO+RT": ("#009E73", "-"),
    "IDK+RT": ("#CC79A7", "-"),
}


def draw_picture(path: Path, results: Mapping[int, Result]) -> None:
    """Retain against forget distance as PNG, one panel per alpha: median over seeds at each step, and each seed thinly.

    Not the mean: it follows the seeds on which every method goes astray, and those differ a thousandfold from the rest.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (alpha, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for name, values in result.paths.items():
            colour, style = _LINES[name]
            for seed in values:
                axes.plot(*seed.T, color=colour, ls=style, lw=0.6, alpha=0.3)
            middle = values.median(0).values
            axes.plot(*middle.T, color=colour, ls=style, lw=2.2, label=name)
            axes.plot(*middle[-1], color=colour, marker="o", ms=6)
        axes.plot(*middle[0], color="black", marker="s", ms=7, ls="none", label="start")
        axes.set(xscale="log", yscale="log", xlabel="forget distance, nats")
        axes.set_title(f"alpha = {alpha}", loc="left", fontsize=11, fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("retain distance, nats")
    figure.axes[-1].legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: the paper's five")
    parser.add_argument("--steps", type=int, default=Size.steps, help="unlearning steps (default 2000)")
    parser.add_argument("--out", type=Path, default=Path("docs/npo-synthetic.png"), help="where the picture goes")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, not {args.steps}")
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one
    size = replace(Size(), steps=args.steps)
    seeds = tuple(args.seeds)
    results = {alpha: measure(alpha, seeds, size) for alpha in (1, 0)}
    report = report_of(results, seeds, size)
    draw_picture(args.out, results)
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
