"""What diffusers' configurations say and this library does not do is refused by name, before anything is built."""

import json
import math
from importlib import resources

import pytest
import torch

from passionsr_lab.pipeline.configs import refuse_non_finite, refuse_unknown

TINY = resources.files("passionsr_lab") / "tiny"
CONFIGS = {
    "scheduler": json.loads((TINY / "scheduler" / "scheduler_config.json").read_text()),
    "vae": json.loads((TINY / "vae" / "config.json").read_text()),
    "unet": json.loads((TINY / "unet" / "config.json").read_text()),
}


def check(part=None, without=None, **fields):
    configs = {name: dict(config) for name, config in CONFIGS.items()}
    if part:
        configs[part] |= fields
        configs[part].pop(without, None)
    refuse_unknown(configs["scheduler"], configs["vae"], configs["unet"], "a/model")


@pytest.mark.parametrize(("part", "field", "value"), [
    ("scheduler", "prediction_type", "v_prediction"),
    ("scheduler", "prediction_type", "sample"),
    ("scheduler", "rescale_betas_zero_snr", True),
    ("scheduler", "thresholding", True),
    ("scheduler", "use_flow_sigmas", True),
    ("scheduler", "beta_start", math.nan),
    ("scheduler", "beta_start", -0.1),
    ("scheduler", "beta_end", 12),
    ("scheduler", "trained_betas", [0.1, math.inf]),
    ("scheduler", "num_train_timesteps", 1e9),
    ("vae", "shift_factor", 0.1),
    ("vae", "latents_mean", [0.1]),
    ("vae", "scaling_factor", math.nan),
    ("vae", "scaling_factor", 0),
    ("vae", "scaling_factor", True),
    ("vae", "block_out_channels", [32] * 9),
    ("unet", "class_embed_type", "timestep"),
    ("unet", "num_class_embeds", 10),
    ("unet", "addition_embed_type", "text_time"),
    ("unet", "time_cond_proj_dim", 256),
    ("unet", "encoder_hid_dim_type", "text_proj"),
    ("unet", "attention_type", "gated"),
    ("unet", "norm_eps", math.nan),
    ("unet", "norm_eps", 0),
    ("unet", "mid_block_scale_factor", math.inf),
    ("unet", "transformer_layers_per_block", 1_000_000),
    ("unet", "transformer_layers_per_block", [[1, 1], 0]),
    ("unet", "block_out_channels", [96, 128, "128"]),
    ("unet", "in_channels", 9),
    ("unet", "out_channels", 16),
    ("unet", "guidance_embeds", 3),
])  # fmt: skip
def test_a_field_that_is_not_honoured_is_named(part, field, value):
    with pytest.raises(ValueError, match=rf"^a/model.*{field}") as error:
        check(part, **{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("part", "name"), [
    ("scheduler", "FlowMatchEulerDiscreteScheduler"), ("scheduler", "EDMEulerScheduler"),
    ("scheduler", "CogVideoXDDIMScheduler"), ("scheduler", "NoScheduler"),
    ("vae", "AsymmetricAutoencoderKL"), ("vae", "AutoencoderTiny"), ("unet", "UNet2DModel"),
])  # fmt: skip
def test_another_class_is_refused(part, name):
    with pytest.raises(ValueError, match=name):
        check(part, _class_name=name)


@pytest.mark.parametrize("field", ["beta_start", "beta_schedule"])
def test_a_schedule_that_is_not_told_is_not_guessed(field):
    with pytest.raises(ValueError, match=field):
        check("scheduler", without=field)


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler"])
def test_how_a_sampler_steps_means_nothing_to_one_step(name):
    check("scheduler", _class_name=name, skip_prk_steps=True, set_alpha_to_one=False, timestep_spacing="trailing")


def test_the_configurations_of_a_plain_model_pass():
    check()
    check("vae", without="shift_factor")
    check("unet", transformer_layers_per_block=[1, 2, [1]], _name_or_path="elsewhere")


def test_a_value_that_is_not_finite_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    refuse_non_finite(model, "a/model")
    model[1].running_var[1] = torch.inf
    with pytest.raises(ValueError, match=r"a/model .* 1\.running_var"):
        refuse_non_finite(model, "a/model")
