"""Losses on numbers worked out by hand, gradients against torch's own, and the memory that they take."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from training.batches import NegativeSampler, Seen
from training.dataset import Sequences
from training.losses import bce, dots, full_softmax, gbce, gbce_beta, sampled_softmax

LN2 = math.log(2)
ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")  # has the most memory that a process held
AMX = torch.cpu.get_capabilities().get("amx_bf16")


def test_binary_cross_entropy_of_scores_that_say_nothing_is_two_coin_flips() -> None:
    zero = torch.zeros(3)
    assert bce(zero, zero[:, None]).item() == pytest.approx(2 * LN2)


def test_binary_cross_entropy_by_hand() -> None:
    # -log sigmoid(ln 3) = -log(3/4); -log(1 - sigmoid(-ln 3)) = -log(3/4); the second pair the other way round.
    three = math.log(3)
    loss = bce(torch.tensor([three, -three]), torch.tensor([[-three], [three]]))
    assert loss.item() == pytest.approx((-2 * math.log(3 / 4) - 2 * math.log(1 / 4)) / 2)


def test_binary_cross_entropy_stays_finite_however_sure_the_scores_are() -> None:
    assert bce(torch.tensor([1e4]), torch.tensor([[-1e4]])).item() == 0
    assert bce(torch.tensor([-1e4]), torch.tensor([[1e4]])).item() == pytest.approx(2e4)


def test_full_softmax_of_equal_scores_is_the_logarithm_of_the_catalogue() -> None:
    """Five items and padding: padding is no candidate, so that it is log 5 and not log 6."""
    assert full_softmax(torch.zeros(2, 3), torch.ones(6, 3), torch.tensor([1, 5])).item() == pytest.approx(math.log(5))


def test_full_softmax_by_hand() -> None:
    items = torch.tensor([[100.0], [0.0], [1.0], [2.0]])  # a padding row that would win if it were looked at
    vectors = torch.tensor([[LN2], [LN2]])  # scores 0, ln 2 and 2 ln 2: probabilities 1/7, 2/7 and 4/7
    loss = full_softmax(vectors, items, torch.tensor([1, 3]))
    assert loss.item() == pytest.approx((math.log(7) + math.log(7 / 4)) / 2)


def some_seen(targets: int, items: int) -> tuple[Seen, torch.Tensor]:
    """Up to nine items of each target, drawn with repeats, and the same as bool (targets, items)."""
    generator = np.random.default_rng(0)
    ends = generator.integers(0, 10, targets).cumsum()
    seen = Seen(generator.integers(1, items + 1, ends[-1], dtype=np.int32), np.concatenate(([0], ends[:-1])), ends)
    dense = torch.zeros(targets, items, dtype=torch.bool)
    for target in range(targets):
        dense[target, seen.items[seen.begins[target] : seen.ends[target]] - 1] = True
    return seen, dense


@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize(("targets", "items"), [(1, 1), (3, 7), (1300, 50), (600, 20_000)])
def test_full_softmax_and_its_gradient_equal_torchs_own_over_all_chunks(
    targets: int, items: int, excluding: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(targets, 4, generator=generator, requires_grad=True)
    matrix = torch.randn(items + 1, 4, generator=generator, requires_grad=True)
    wanted = torch.randint(1, items + 1, (targets,), generator=generator)
    seen, excluded = some_seen(targets, items)
    excluded[torch.arange(targets), wanted - 1] = False  # a target that was met before is one all the same
    loss = full_softmax(vectors, matrix, wanted, seen=seen if excluding else None)
    (3 * loss).backward()  # what comes back is multiplied by what comes after
    found = [tensor.grad.clone() for tensor in (vectors, matrix) if tensor.grad is not None]
    vectors.grad = matrix.grad = None
    scores = vectors @ matrix[1:].T
    reference = functional.cross_entropy(scores.masked_fill(excluded, -math.inf) if excluding else scores, wanted - 1)
    (3 * reference).backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5, abs=1e-6)
    for grad, expected in zip(found, (vectors.grad, matrix.grad), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
    assert matrix.grad is not None
    assert found[1][0].abs().max() == 0  # padding learns nothing


def test_full_softmax_stays_finite_with_enormous_scores() -> None:
    vectors = torch.full((2, 1), 1e4, requires_grad=True)
    loss = full_softmax(vectors, torch.tensor([[0.0], [1e4], [-1e4]]), torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_dots_scores_every_item_of_a_vector() -> None:
    matrix = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])
    found = dots(torch.tensor([[1.0, 10.0], [1.0, -1.0]]), matrix, torch.tensor([[2, 1], [1, 1]]))
    assert found.tolist() == [[43.0, 21.0], [-1.0, -1.0]]


@pytest.mark.parametrize(
    ("asked", "items"),
    [
        pytest.param(2, 1000, id="few of many: row by row"),
        pytest.param(20, 9000, id="many of many more: a product of rows laid out"),
        pytest.param(20, 2000, id="a good part: picked out of all, in chunks"),
    ],
)
def test_dots_and_their_gradient_are_those_of_rows_however_they_are_computed(asked: int, items: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1300, 4, generator=generator, requires_grad=True)
    matrix = torch.randn(items, 4, generator=generator, requires_grad=True)
    wanted = torch.randint(1, items, (1300, asked), generator=generator)
    wanted[:, -1] = wanted[:, 0]  # one that is asked for twice gets both gradients
    weights = torch.randn(wanted.shape, generator=generator)
    found = dots(vectors, matrix, wanted)
    gradients = torch.autograd.grad((found * weights).sum(), (vectors, matrix))
    naive = torch.einsum("td,tnd->tn", vectors, matrix[wanted])
    torch.testing.assert_close(found, naive)
    for got, right in zip(gradients, torch.autograd.grad((naive * weights).sum(), (vectors, matrix)), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def test_gbce_by_hand() -> None:
    # sigmoid(ln 3) = 3/4 to the power of 1/2; negatives at 0 and ln 3 cost log 2 and log 4.
    loss = gbce(torch.tensor([math.log(3)]), torch.tensor([[0.0, math.log(3)]]), beta=0.5)
    assert loss.item() == pytest.approx(-0.5 * math.log(3 / 4) + math.log(2) + math.log(4))


@pytest.mark.parametrize("beta", [0.0, -0.1, 1.1])
def test_gbce_refuses_a_beta_outside_its_range(beta: float) -> None:
    with pytest.raises(ValueError, match="beta is"):
        gbce(torch.zeros(1), torch.zeros(1, 1), beta=beta)


def test_the_beta_of_gbce_by_hand() -> None:
    # 25 of 100 other items: a = 1/4; t = 1/2 gives 1/4 * (1/2 * (1 - 4) + 4) = 5/8.
    assert gbce_beta(25, 101, 0.5) == pytest.approx(5 / 8)
    assert gbce_beta(25, 101, 0.0) == 1.0  # uncalibrated: plain binary cross-entropy
    assert gbce_beta(25, 101, 1.0) == pytest.approx(1 / 4)  # fully calibrated: the sampling rate
    assert gbce_beta(200, 101, 0.75) == 1.0  # more negatives than items


def test_sampled_softmax_by_hand() -> None:
    items = torch.tensor([[9.0], [0.0], [LN2], [2 * LN2]])
    log_draws = torch.tensor([0.0, 0.0, LN2, 0.0])
    # target 1 scores 0; negatives 2 and 3 score ln 2 - ln 2 and 2 ln 2: probabilities 1/6, 1/6, 4/6.
    loss = sampled_softmax(torch.ones(1, 1), items, torch.tensor([1]), torch.tensor([2, 3]), log_draws)
    assert loss.item() == pytest.approx(math.log(6))


def test_a_negative_that_is_the_target_does_not_count_against_it() -> None:
    items = torch.zeros(4, 1)
    loss = sampled_softmax(torch.ones(2, 1), items, torch.tensor([1, 2]), torch.tensor([1, 3]), torch.zeros(4))
    assert loss.item() == pytest.approx((math.log(2) + math.log(3)) / 2)


def test_sampled_softmax_takes_negatives_of_each_target_too() -> None:
    torch.manual_seed(0)
    vectors, items, log_draws = torch.randn(2, 4), torch.randn(6, 4), torch.randn(6)
    targets, negatives = torch.tensor([1, 2]), torch.tensor([[3, 4], [5, 2]])
    alone = [sampled_softmax(vectors[[t]], items, targets[[t]], negatives[t], log_draws).item() for t in range(2)]
    together = sampled_softmax(vectors, items, targets, negatives, log_draws).item()
    assert together == pytest.approx(sum(alone) / 2)


def test_sampled_softmax_leaves_out_what_was_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, matrix = torch.randn(600, 4, generator=generator), torch.randn(31, 4, generator=generator)
    targets, negatives = (torch.randint(1, 31, (count,), generator=generator) for count in (600, 40))
    log_draws = torch.rand(31, generator=generator)
    seen, excluded = some_seen(600, 30)
    scores = (vectors @ matrix[negatives].T - log_draws[negatives]).masked_fill(
        excluded[:, negatives - 1] | (negatives == targets[:, None]), -math.inf
    )
    own = (vectors * matrix[targets]).sum(1, keepdim=True)
    expected = -torch.log_softmax(torch.cat([own, scores], 1), 1)[:, 0].mean()
    found = sampled_softmax(vectors, matrix, targets, negatives, log_draws, seen=seen)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_sampled_softmax_estimates_the_full_one_when_its_draws_are_corrected() -> None:
    generator = np.random.default_rng(0)
    flat = np.sort(generator.integers(1, 21, 400)).astype(np.int32)  # uneven popularity
    flat[:150] = 1
    sampler = NegativeSampler(Sequences(flat, np.array([0]), np.array([400])), 20)
    torch.manual_seed(0)
    vectors, items, targets = torch.randn(30, 4), torch.randn(21, 4), torch.randint(1, 21, (30,))
    log_draws = torch.from_numpy(sampler.log_expected_draws(20_000))
    negatives = torch.from_numpy(sampler.draw_popular(20_000, generator))
    # With the target left out of the negatives, the expected normaliser is the full one.
    full = full_softmax(vectors, items, targets).item()
    assert sampled_softmax(vectors, items, targets, negatives, log_draws).item() == pytest.approx(full, rel=0.02)
    assert sampled_softmax(vectors, items, targets, negatives, torch.zeros(21)).item() > full + 1


def test_popular_negatives_come_in_proportion_to_their_interactions_plus_one() -> None:
    sampler = NegativeSampler(Sequences(np.array([1, 1, 1, 2], np.int32), np.array([0]), np.array([4])), 3)
    counts = np.bincount(sampler.draw_popular(70_000, np.random.default_rng(0)), minlength=4)
    assert counts[0] == 0
    assert counts[1:] / 10_000 == pytest.approx([4, 2, 1], abs=0.1)
    assert np.exp(sampler.log_expected_draws(7))[1:] == pytest.approx([4, 2, 1])


@pytest.mark.skipif(not AMX, reason="the processor has no AMX for bfloat16")
@pytest.mark.parametrize("targets", [1, 128, 1300])
def test_full_softmax_of_rounded_factors_is_that_of_the_factors_to_rounding(targets: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(targets, 64, generator=generator, requires_grad=True)
    matrix = (torch.randn(5001, 64, generator=generator) / 8).requires_grad_()
    wanted = torch.randint(1, 5001, (targets,), generator=generator)
    losses: list[float] = []
    found: list[list[torch.Tensor]] = []
    for bfloat16 in (False, True):
        vectors.grad = matrix.grad = None
        loss = full_softmax(vectors, matrix, wanted, bfloat16=bfloat16)
        loss.backward()
        assert vectors.grad is not None
        assert matrix.grad is not None
        losses.append(loss.item())
        found.append([vectors.grad.clone(), matrix.grad.clone()])
    assert losses[0] != losses[1]  # it did round
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for grad, rounded in zip(*found, strict=True):
        assert (grad - rounded).norm() < 0.01 * grad.norm()
    one, other = torch.randn(2, 512, 64, generator=generator)
    torch.testing.assert_close(one @ other.T, (one.double() @ other.T.double()).float())  # no other product rounds


MEASURED = """
import json, os, sys
from pathlib import Path

import torch

from training.losses import full_softmax, sampled_softmax
from training.objectives import associated_attribute_prediction

torch.set_num_threads(1)

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def grown(targets, items, loss):
    torch.manual_seed(0)
    vectors, matrix = torch.randn(targets, 8, requires_grad=True), torch.randn(items + 1, 8, requires_grad=True)
    wanted = torch.randint(1, items + 1, (targets,))
    before = held("VmRSS")
    eval(loss).backward()
    assert vectors.grad is not None and matrix.grad is not None
    return held("VmHWM") - before

for case in json.loads(sys.argv[1]):
    if not (child := os.fork()):  # which has held no more than it holds now
        print(grown(*case), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
SCORED = {  # targets, items, loss: a GB of scores
    "full softmax": (4096, 65_536, "full_softmax(vectors, matrix, wanted)"),
    "full softmax, rounded where AMX is": (4096, 65_536, "full_softmax(vectors, matrix, wanted, bfloat16=True)"),
    "attributes": (
        4096,
        65_536,
        "associated_attribute_prediction(vectors, matrix, torch.arange(targets), wanted)",
    ),
    "sampled softmax, shared negatives": (
        256,
        1_000_000,
        "sampled_softmax(vectors, matrix, wanted, torch.randint(1, items, (256,)), torch.zeros(items + 1))",
    ),
    "sampled softmax, own negatives": (
        256,
        1_000_000,
        "sampled_softmax(vectors, matrix, wanted, torch.randint(1, items, (256, 64)), torch.zeros(items + 1))",
    ),
}


@pytest.fixture(scope="module")
def grown_bytes() -> dict[str, int]:
    """How much more memory a process held at most while it computed each of the losses and its gradient."""
    command = [sys.executable, "-c", MEASURED, json.dumps(list(SCORED.values()))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(SCORED, map(int, done.stdout.split()), strict=True))


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not say how much memory a process held at most")
@pytest.mark.parametrize("name", SCORED)
def test_the_scores_of_all_targets_and_items_are_never_in_memory_together(
    grown_bytes: dict[str, int], name: str
) -> None:
    targets, items, _ = SCORED[name]
    assert 0 < grown_bytes[name] < targets * items * 4 / 3
