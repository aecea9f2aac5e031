"""The highest point of a micro-batch, by hand: two layers that keep 100 and take 130 forward and 40 backward."""

from __future__ import annotations

from align.plan.head import Taken
from align.plan.step import Micro, Peak, peak, silent
from align.plan.trace import Layer

LAYER = Layer(keeps=100, enters=10, forward=130, backward=40, silent=50)
NOTHING = Taken(0, 0, 0)


def micro(**changes: object) -> Micro:
    base = Micro([LAYER, LAYER], NOTHING, states=0, gradients=[0, 0], around=0, head_gradient=0)
    return base._replace(**changes)  # type: ignore[arg-type]


def test_the_top_layer_going_backward_is_the_highest_where_gradients_are_small() -> None:
    # both layers kept, the gradient from above, and what the layer's backward takes
    assert peak(micro()) == Peak(200 + 10 + 40, 0, 0)


def test_gradients_that_are_large_put_the_highest_point_at_the_end() -> None:
    # all activations are gone; 500 of each layer, and the embedding's 300
    assert peak(micro(gradients=[500, 500], around=300)) == Peak(0, 1300, 0)
    # between: one layer's gradients are there while the lower one still keeps its 100, and takes 10 + 40
    assert peak(micro(gradients=[0, 500])) == Peak(100 + 10 + 40, 500, 0)


def test_the_head_comes_on_top_of_all_layers() -> None:
    head = Taken(keeps=20, forward=70, backward=90)
    assert peak(micro(head=head)) == Peak(200, 0, 20 + 90)
    # with states of 30: two copies that the last norm keeps, and its output
    assert peak(micro(head=head, states=30)) == Peak(200 + 3 * 30, 0, 110)


def test_a_tied_head_holds_its_gradient_beside_the_embeddings_until_they_are_added_up() -> None:
    assert peak(micro(around=1000, head_gradient=1000, tied=True)).gradients == 2000
    assert peak(micro(around=1000, head_gradient=0)).gradients == 1000


def test_checkpointing_keeps_inputs_and_computes_one_layer_again() -> None:
    # two inputs, the gradient from above, and the layer's 100 with 40 for its backward
    assert peak(micro(checkpointing=True)) == Peak(2 * 10 + 10 + 140, 0, 0)


def test_gradients_of_earlier_micro_batches_are_there_all_the_time() -> None:
    # at the end the embedding's new gradient stands beside the one that it is added to
    assert peak(micro(gradients=[500, 500], around=300, accumulated=True)) == Peak(0, 1300 + 300, 0)
    # with a small embedding the top layer's backward is the highest point
    kept = micro(gradients=[500, 500], around=10, head_gradient=200, accumulated=True)
    assert peak(kept) == Peak(250, 1210, 0)
    assert peak(kept._replace(tied=True)) == Peak(250, 1010, 0)


def test_what_is_kept_of_a_reference_is_there_from_the_start() -> None:
    assert peak(micro(beside=77)) == Peak(77 + 250, 0, 0)


def test_a_forward_without_gradients_holds_one_layer_at_a_time() -> None:
    assert silent([LAYER, LAYER], Taken(20, 70, 90), states=30) == 60 + 70
    assert silent([LAYER, LAYER], NOTHING, states=30, share=0.5) == 30
    assert silent([LAYER, LAYER], NOTHING, states=30, all_states=True) == 60 + 20  # hidden states of both layers
