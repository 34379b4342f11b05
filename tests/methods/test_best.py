"""Our own procedure: what its branches weigh, where they are larger, and that the merged one leaves nothing behind."""

import passionsr_lab as lab
from passionsr_lab.analysis.bitcost import recipe_cost
from passionsr_lab.analysis.cost import count
from passionsr_lab.analysis.layers import branch_ranks
from passionsr_lab.methods import best
from passionsr_lab.quantization.layer import QuantLayer


def test_at_4_bits_the_branches_of_the_embedded_model_weigh_at_most_a_quarter_more():
    pipe, recipe = lab.tiny(), lab.W4A4
    q, frame = lab.quantize(pipe, recipe), count(pipe, 64)
    best.METHOD.slots.install(q)
    ranks = branch_ranks(q)
    plain, ours = recipe_cost(frame, recipe), recipe_cost(frame, recipe, ranks)
    assert 1.05 < ours["bytes"] / plain["bytes"] <= 1.25
    widths = {
        name: min(len(x.layer.weight), x.layer.weight[0].numel()) for name, x in q.layers.items() if name in ranks
    }
    shares = {part: [ranks[n] / widths[n] for n in ranks if n.startswith(part)] for part in ("unet.", "vae.")}
    assert sum(shares["vae."]) / len(shares["vae."]) > 2 * sum(shares["unet."]) / len(shares["unet."])


def test_a_recipe_s_rank_counts_before_the_method_s():
    q = lab.quantize(lab.tiny(), lab.W4A4.override("vae.decoder.conv_in", rank=3).override("unet.conv_in", rank=0))
    best.METHOD.slots.install(q)
    assert q.layers["vae.decoder.conv_in"].branch.rank == 3 and q.layers["unet.conv_in"].branch.rank == 0


def test_the_merged_one_is_nothing_but_integers_and_scales(ran):
    q, records = ran("best-merged", lab.recipe("W6A6", modules=("unet",)))
    layers = [layer for layer in q.layers.values() if isinstance(layer, QuantLayer)]
    assert all(layer.branch is None and layer.frozen().branch is None for layer in layers)
    assert any(layer.delta.up.any() for layer in layers), "its LoRA has learned"
    assert not branch_ranks(q) and records.module.unique().tolist() == ["unet", "all"]
