"""The 3D-properties (arXiv 2406.07327) on a softmax model small enough to see everything, with our own losses.

    python benchmarks/three_d_toy.py              table, claims and docs/figures/three-d-toy.png
    python benchmarks/three_d_toy.py --json       the numbers

Four prompts and ten responses. Prompt i has the pair (response i chosen, response 4 + i rejected); its eight other
responses are unseen. The network is a one-hot prompt, two layers of 32 ReLU units, and ten logits, so prompts share
parameters. The control is a table, one logit for each prompt and response, which share nothing. Both start from the
same policy, in which an on-policy response has about 0.3 of the probability and an off-policy one about 0.005.
Four prompts, ten responses, three layers, 500 epochs and the four settings are the paper's; widths, optimizer, learning
rate and starting policy are ours, since it does not give them. One epoch is one step of Adam on all four pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.scores import Scores
from align.objectives import DPO, RPO, FlexDPO, Objective

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "three-d-toy.png"
PROMPTS, RESPONSES, HIDDEN = 4, 10, 32
PAIRS = torch.arange(PROMPTS)  # of prompt i: response i is chosen, response PROMPTS + i rejected
ON, OFF = 0.3, 0.005  # probability of a response that the starting policy would write, and of one that it would not
EPOCHS, SEEDS = 500, tuple(range(10))
# one step of Adam moves a network's logits by far more than its rate, a table's just by it
RATE, TABLE_RATE = 0.01, 0.1
FIT_STEPS, FIT = 5000, 1e-6  # the network copies the starting policy up to this KL, in nats, the worst prompt's

METHODS: dict[str, Objective] = {
    "DPO": DPO(beta=0.1),
    "Flex-DPO": FlexDPO(beta_plus=0.1, beta_minus=0.05),
    "RPO": RPO(preset="handbook", beta=0.1, eta=0.2),
}
# chosen on-policy, rejected on-policy
SETTINGS = {
    "both on-policy": (True, True),
    "chosen off-policy": (False, True),
    "rejected off-policy": (True, False),
    "both off-policy": (False, False),
}
SIDES = ("chosen", "rejected", "unseen")
# columns of a history; "others' chosen" is the part of the unseen probability on the chosen responses of other prompts
COLUMNS = (*SIDES, "others' chosen", "|dl/dp+|", "|dl/dp-|")


@dataclass(frozen=True)
class Policy:
    """Trained ``parameters``, how log-probs [prompts, responses] follow from them, and their learning rate."""

    parameters: list[Tensor]
    logp: Callable[[], Tensor]
    rate: float


def start(chosen_on: bool, rejected_on: bool, seed: int) -> Tensor:
    """The starting policy, [prompts, responses]; what the pair leaves is spread unevenly over unseen responses."""
    random = torch.Generator().manual_seed(seed)
    policy = 0.5 + torch.rand(PROMPTS, RESPONSES, generator=random, dtype=torch.float64)
    policy[PAIRS, PAIRS] = policy[PAIRS, PROMPTS + PAIRS] = 0
    chosen, rejected = (ON if on else OFF for on in (chosen_on, rejected_on))
    policy *= (1 - chosen - rejected) / policy.sum(1, keepdim=True)
    policy[PAIRS, PAIRS], policy[PAIRS, PROMPTS + PAIRS] = chosen, rejected
    return policy


def table(policy: Tensor) -> Policy:
    """One logit for each prompt and response, at ``policy`` exactly."""
    logits = policy.log().requires_grad_()
    return Policy([logits], lambda: logits.log_softmax(1), TABLE_RATE)


def fit(policy: Tensor, seed: int) -> nn.Module:
    """A network fitted to ``policy``. Raises RuntimeError where the fit is not reached."""
    torch.manual_seed(seed)
    layers = (nn.Linear(PROMPTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, RESPONSES))
    fitted = nn.Sequential(*layers).double()
    wrapped = network(fitted)
    optimizer = torch.optim.Adam(wrapped.parameters, lr=RATE)
    for _ in range(FIT_STEPS):
        kl = (policy * (policy.log() - wrapped.logp())).sum(1)
        if kl.max() < FIT:
            return fitted
        optimizer.zero_grad()
        kl.sum().backward()
        optimizer.step()
    raise RuntimeError(f"after {FIT_STEPS} steps the network is {kl.max():.1e} nats from the starting policy")


def network(model: nn.Module) -> Policy:
    """A network from one-hot prompts to logits."""
    prompts = torch.eye(PROMPTS, dtype=torch.float64)
    return Policy(list(model.parameters()), lambda: model(prompts).log_softmax(1), RATE)


def scores(chosen: Tensor, rejected: Tensor) -> Scores:
    """Scores of pairs whose answers are one token each; log-probs [n]."""
    pairs = torch.arange(2 * len(chosen)).view(2, -1)
    sequences = {"chosen": pairs[0], "rejected": pairs[1]}
    logp = torch.cat([chosen, rejected])
    return Scores({"logp": logp}, pairs.flatten(), sequences, torch.ones(len(logp), dtype=torch.long))


def pairs_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values [prompts, responses] of every prompt's chosen response and of its rejected one, [prompts] each."""
    return values[PAIRS, PAIRS], values[PAIRS, PROMPTS + PAIRS]


def loss_of(objective: Objective, chosen: Tensor, rejected: Tensor, reference: Scores) -> Tensor:
    """Sum over pairs of the objective's loss, from log-probs [n]."""
    terms = objective(scores(chosen, rejected), reference)
    return torch.stack([term.weight * term.losses.sum() for term in terms.losses]).sum()


def probability_gradients(loss: Tensor, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """dl/dp+ and dl/dp- of every pair, [n] each, from its log-probs: dl/dp = (dl/dlog p) / p."""
    plus, minus = torch.autograd.grad(loss, (chosen, rejected), retain_graph=True)
    return plus / chosen.detach().exp(), minus / rejected.detach().exp()


def train(policy: Policy, objective: Objective, epochs: int = EPOCHS) -> Tensor:
    """``COLUMNS`` before the first epoch and after each, [epochs + 1, columns].

    Probabilities are means over prompts, gradients geometric means over the four pairs.
    """
    reference = scores(*pairs_of(policy.logp().detach()))
    optimizer = torch.optim.Adam(policy.parameters, lr=policy.rate)
    path = []
    for _ in range(epochs + 1):
        logp = policy.logp()
        chosen, rejected = pairs_of(logp)
        loss = loss_of(objective, chosen, rejected, reference)
        sizes = [g.abs().log().mean().exp() for g in probability_gradients(loss, chosen, rejected)]
        path.append(torch.stack([*_probabilities(logp.detach().exp()), *sizes]))
        optimizer.zero_grad()
        (loss / PROMPTS).backward()
        optimizer.step()  # the one after the last measurement is seen by nobody
    return torch.stack(path)


def _probabilities(p: Tensor) -> list[Tensor]:
    chosen, rejected = pairs_of(p)
    others = p[:, :PROMPTS].sum(1) - chosen
    return [x.mean() for x in (chosen, rejected, 1 - chosen - rejected, others)]


# ---- what it shows

Paths = Mapping[tuple[str, str, str], Tensor]  # by setting, model and method: [seeds, epochs + 1, columns]


def measure(seeds: tuple[int, ...], epochs: int) -> dict[tuple[str, str, str], Tensor]:
    """Every method on both models in every setting."""
    found: dict[tuple[str, str, str], list[Tensor]] = {}
    for setting, (chosen_on, rejected_on) in SETTINGS.items():
        for seed in seeds:
            begin = start(chosen_on, rejected_on, seed)
            fitted = fit(begin, seed)
            for name, objective in METHODS.items():
                for model, policy in (("network", network(deepcopy(fitted))), ("table", table(begin))):
                    found.setdefault((setting, model, name), []).append(train(policy, objective, epochs))
        print(f"  {setting}: done", file=sys.stderr, flush=True)
    return {key: torch.stack(runs) for key, runs in found.items()}


def column(path: Tensor, name: str) -> Tensor:
    """One column of histories, [..., epochs + 1]."""
    return path[..., COLUMNS.index(name)]


def spread(values: Tensor) -> dict[str, float]:
    """Median, least and largest over seeds."""
    return {"median": float(values.quantile(0.5)), "least": float(values.min()), "most": float(values.max())}


def claims(paths: Paths) -> list[dict[str, Any]]:
    """On how many seeds a property of DPO is seen, the two remedies help, and the control is clean."""

    def end(setting: str, name: str, side: str, model: str = "network") -> Tensor:
        return column(paths[setting, model, name], side)[:, -1]

    def first(setting: str, side: str) -> Tensor:
        return column(paths[setting, "network", "DPO"], side)[:, 0]

    said = []
    for setting in SETTINGS:
        chosen = column(paths[setting, "network", "DPO"], "chosen")
        unseen = column(paths[setting, "network", "DPO"], "unseen")
        control = column(paths[setting, "table", "DPO"], "chosen")
        up, down = (end(setting, "DPO", size) for size in ("|dl/dp+|", "|dl/dp-|"))
        plan = {
            "drop: |dl/dp-| grows and |dl/dp+| shrinks": (down > first(setting, "|dl/dp-|"))
            & (up < first(setting, "|dl/dp+|")),
            "degradation: chosen ends below 0.9 of its peak": chosen[:, -1] < 0.9 * chosen.max(1).values,
            "dispersion: unseen ends 0.1 above its least": unseen[:, -1] > unseen.min(1).values + 0.1,
            "dispersion: unseen ends above its start": unseen[:, -1] > unseen[:, 0],
            "Flex-DPO leaves more on chosen than DPO": end(setting, "Flex-DPO", "chosen") > chosen[:, -1],
            "RPO leaves more on chosen than DPO": end(setting, "RPO", "chosen") > chosen[:, -1],
            "control: chosen never falls": (control.diff(dim=1) >= 0).all(1),
            "control: unseen ends below its start": end(setting, "DPO", "unseen", "table") < unseen[:, 0],
        }
        said += [{"setting": setting, "claim": claim, "seeds": int(holds.sum())} for claim, holds in plan.items()]
    for off, on in (("chosen off-policy", "both on-policy"), ("both off-policy", "rejected off-policy")):
        fewer = end(off, "DPO", "chosen") < end(on, "DPO", "chosen")
        said.append({"setting": off, "claim": f"DPO leaves less on chosen than {on}", "seeds": int(fewer.sum())})
    return said


def report_of(paths: Paths, seeds: tuple[int, ...], epochs: int) -> dict[str, Any]:
    """The numbers by setting, model and method, and the claims."""
    rows = []
    for (setting, model, name), path in paths.items():
        chosen = column(path, "chosen")
        row: dict[str, Any] = {"setting": setting, "model": model, "method": name}
        row["start"] = {side: spread(column(path, side)[:, 0]) for side in COLUMNS}
        row["end"] = {side: spread(column(path, side)[:, -1]) for side in COLUMNS}
        row["peak of chosen"] = spread(chosen.max(1).values)
        row["epoch of the peak"] = chosen.argmax(1).tolist()
        rows.append(row)
    return {"seeds": list(seeds), "epochs": epochs, "runs": rows, "claims": claims(paths)}


def text_of(report: Mapping[str, Any]) -> str:
    """The report for people."""
    count = len(report["seeds"])
    lines = [
        f"median over {count} seeds [least, most]; the end is after {report['epochs']} epochs;",
        "others: the part of p(unseen) that lies on what other prompts' pairs call chosen",
        f"{'':38}{'p(chosen)':<32}{'p(unseen)':<18}{'others':>8}{'p(rej.)':>9}{'|dl/dp+|':>10}{'|dl/dp-|':>10}",
        f"{'':38}{'start':<7}{'peak':<7}{'end':<18}{'end':<18}{'end':>8}{'end':>9}{'end':>10}{'end':>10}",
    ]
    for row in report["runs"]:
        begin, end = row["start"], row["end"]
        spans = [f"{v['median']:.2f} [{v['least']:.2f}, {v['most']:.2f}]" for v in (end["chosen"], end["unseen"])]
        others, plus, minus = (end[size]["median"] for size in COLUMNS[-3:])
        lines.append(
            f"{row['setting']:20}{row['model']:9}{row['method']:9}"
            f"{begin['chosen']['median']:<7.3f}{row['peak of chosen']['median']:<7.2f}{spans[0]:<18}{spans[1]:<18}"
            f"{others:8.2f}{end['rejected']['median']:9.0e}{plus:10.1e}{minus:10.1e}"
        )
    lines += [f"{claim['seeds']:3} of {count}: {claim['setting']}: {claim['claim']}" for claim in report["claims"]]
    return "\n".join(lines)


# Okabe and Ito's colours, which stay apart for colour-blind readers, and a dash pattern each
_STYLES = {
    "chosen": ("#0072B2", "-"),
    "rejected": ("#D55E00", (0, (5, 1.5))),
    "unseen": ("#009E73", (0, (1.2, 1.2))),
    "|dl/dp+|": ("#0072B2", "-"),
    "|dl/dp-|": ("#D55E00", (0, (5, 1.5))),
}
_PANELS = (("network", "DPO"), ("network", "Flex-DPO"), ("network", "RPO"), ("table", "DPO"))


def draw(path: Path, paths: Paths) -> None:
    """A PNG: one row for each setting; four panels of probabilities, then the gradients of DPO on the network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 10.5), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(SETTINGS), len(_PANELS) + 1, sharex=True, squeeze=False)
    for row, setting in zip(grid, SETTINGS, strict=True):
        for axes, (model, name) in zip(row, _PANELS, strict=False):
            _curves(axes, paths[setting, model, name], SIDES)
            axes.set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
        row[0].set_ylabel(f"{setting}\nprobability", fontsize=10)
        _curves(row[-1], paths[setting, "network", "DPO"], COLUMNS[-2:])
        row[-1].set(yscale="log", ylim=(1e-9, 1e90), yticks=(1, 1e20, 1e40, 1e60, 1e80))
        row[-1].minorticks_off()
    titles = [f"{name}, {model}{' (control)' if model == 'table' else ''}" for model, name in _PANELS]
    for axes, title in zip(grid[0], [*titles, "gradients of DPO, network"], strict=True):
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    for axes in grid[-1]:
        axes.set_xlabel("epoch", fontsize=9)
    for axes in (grid[0, 0], grid[0, -1]):
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _curves(axes: Any, path: Tensor, names: tuple[str, ...]) -> None:
    """Median over seeds, and a band from the least to the largest; epochs from 1 on a logarithmic axis."""
    epochs = torch.arange(path.shape[1])
    for name in names:
        colour, style = _STYLES[name]
        values = column(path, name)
        axes.fill_between(epochs, values.min(0).values, values.max(0).values, color=colour, alpha=0.15, lw=0)
        axes.plot(epochs, values.quantile(0.5, dim=0), color=colour, ls=style, lw=2, label=name)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(0, int(epochs[-1])), xticks=(0, 1, 10, 100), xticklabels=("0", "1", "10", "100"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, labelbottom=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: 0 to 9")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="the paper's 500")
    parser.add_argument("--out", type=Path, default=PICTURE, help="where the picture goes")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, not {args.epochs}")
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one
    paths = measure(tuple(args.seeds), args.epochs)
    report = report_of(paths, tuple(args.seeds), args.epochs)
    draw(args.out, paths)
    print(json.dumps(report, indent=1) if args.json else text_of(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
