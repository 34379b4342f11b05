"""Original names to diffusers names, against diffusers' own conversion and a released file."""

from pathlib import Path

import pytest
import torch
from synthetic import unet_keys, vae_keys

from passionsr_lab.fullsize.names import diffusers_name
from passionsr_lab.fullsize.sd21 import UNET, sd21

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "passionsr_official" / "vae_ckpt_merge_saw_sep_W8A8.pth"


@pytest.fixture(scope="module")
def model():
    return sd21()


@pytest.mark.parametrize(("part", "keys"), [("unet", unet_keys()), ("vae", vae_keys())])
def test_every_tensor_of_sd21_has_its_ldm_name(model, part, keys):
    ours = [diffusers_name(key) for key in keys]
    assert len(keys) == len(set(keys)) == len(set(ours)) == {"unet": 686, "vae": 248}[part]
    assert set(ours) == set(getattr(model, part).state_dict())


def test_the_names_are_those_of_diffusers_own_conversion():
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    unet = {f"model.diffusion_model.{key}": torch.tensor(i) for i, key in enumerate(unet_keys())}
    vae = {f"first_stage_model.{key}": torch.full((1, 1, 1, 1), i) for i, key in enumerate(vae_keys())}
    blocks = {"down_block_types": [0] * 4, "up_block_types": [0] * 4}
    theirs = convert_ldm_unet_checkpoint(dict(unet), UNET)
    assert {diffusers_name(key): value for key, value in unet.items()} == theirs
    theirs = convert_ldm_vae_checkpoint(dict(vae), blocks)
    assert {diffusers_name(k): v.item() for k, v in vae.items()} == {k: v.flatten().item() for k, v in theirs.items()}


def test_modules_and_added_tensors_are_named_like_weights():
    assert diffusers_name("input_blocks.0.0") == "conv_in"
    assert diffusers_name("out.2.act_quantizer_0.x_min") == "conv_out.act_quantizer_0.x_min"
    attention = "output_blocks.3.1.transformer_blocks.0.attn2"
    assert diffusers_name(f"{attention}.scale_factor_vw").endswith("up_blocks.1.attentions.0.transformer_blocks.0.attn2"
                                                                  ".scale_factor_vw")  # fmt: skip
    assert diffusers_name("encoder.mid.attn_1.proj_out.offset") == "encoder.mid_block.attentions.0.to_out.0.offset"


@pytest.mark.parametrize(
    "name", ["input_blocks.12.0", "conv_in.weight", "out.1", "encoder.down.4.block.0", "quant_con"]
)
def test_what_is_no_ldm_name_is_refused(model, name):
    with pytest.raises(ValueError, match="not an ldm name"):
        diffusers_name(name)


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="the released VAE tensors are not there")
def test_the_released_vae_tensors_belong_to_the_vae(model):
    keys = [k.removeprefix("model.") for k in torch.load(OFFICIAL, map_location="cpu", weights_only=True)]
    modules = {name for name, _ in model.vae.named_modules()}
    named = [diffusers_name(key) for key in keys]
    layers = {name.rsplit(".scale_factor")[0] for name in named if name.endswith(".scale_factor")}
    assert len(named) == len(set(named)) == 680 and len(layers) == 72 and layers <= modules
