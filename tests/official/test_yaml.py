"""YAML files of the released code: every key used, known to have no use, or refused; and YAML that says one thing."""

import copy
import os
import time
from pathlib import Path

import pytest
import yaml

from passionsr_lab.official import strict_yaml
from passionsr_lab.official.yaml import read_options
from passionsr_lab.quantization.recipe import AT_LEAST

BLOCK = {
    "quantype": "PTQ", "method": "saw_sep", "only_weight": False, "weight_quant_bits": 6, "weight_sym": False,
    "weight_sign": False, "act_quant_bits": 6, "act_sign": False, "act_sym": False, "split": True,
    "layer_type": "2Dquant", "s_alpha": 0.3,
}  # fmt: skip
STAGE = {"cali_learning_rate": "1e-5", "cali_epochs": 2, "loss_function": "mse", "save_interval": 5}
SCHEDULER = {"milestones": [1], "gamma": 0.2}
SHARED = {
    "device": "cuda:0",
    "basic_config": {
        "seed": 42, "precision": "autocast", "upscale": 4, "process_size": 512, "lora_weights_path": "osediff.ckpt",
        "pretrained_model_name_or_path": "sd21", "config": "v2.yaml", "ckpt": "v2-1_512-ema-pruned.ckpt",
        "context_embedding_path": "empty_context_embedding.pt", "align_method": "adain", "merge_lora": True,
    },
}  # fmt: skip
BOTH = {"quantize": True, "only_Unet": False, "Unet": BLOCK, "Vae": BLOCK | {"split": False}}
OUT = {"output_modelpath": "results/W6A6", "cali_batch_size": 4}
UV = SHARED | {
    "cali_img_path": "data/cali_dataset", "act": False,
    "quantize_config": BOTH | OUT | {"Unet_train": STAGE | {"scheduler": SCHEDULER}, "encoder_train": STAGE,
                                     "decoder_train": STAGE},
}  # fmt: skip
U = SHARED | {
    "cali_img_path": "data/cali_dataset",
    "quantize_config": {"quantize": True, "only_Unet": True, "Unet": BLOCK} | OUT | STAGE | {"scheduler": SCHEDULER},
}
INFERENCE = SHARED | {
    "out_dir": "results/W6A6", "dataset": "RealSR",
    "tile_config": {"vae_decoder_tiled_size": 224, "vae_encoder_tiled_size": 1024, "latent_tiled_size": 64,
                    "latent_tiled_overlap": 32},
    "quantize_config": BOTH | {"Unet": BLOCK | {"quant_ckpt": "u.pth"},
                               "Vae": BLOCK | {"quant_ckpt": "v.pth", "split": False}},
}  # fmt: skip
Q, B = "quantize_config.", "basic_config."


@pytest.fixture
def write(tmp_path):
    """A function that writes text, or a file's content with the keys at dotted names changed (... removes one)."""

    def to_file(content, changes=()):
        if isinstance(content, dict):
            content = copy.deepcopy(content)
            for dotted, value in dict(changes).items():
                *parents, key = dotted.split(".")
                place = content
                for parent in parents:
                    place = place[parent]
                place[key] = value
                if value is ...:
                    del place[key]
            content = yaml.dump(content, Dumper=Plain, sort_keys=False)
        (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / "config.yaml"

    return to_file


class Plain(yaml.SafeDumper):
    """Writes what is shared twice, as the released files do."""

    ignore_aliases = lambda self, data: True


def test_a_uv_file_becomes_our_recipe_and_options(write):
    config = read_options(write(UV), "calibrate")
    o, recipe, unused = config.options, config.options["recipe"], config.unused
    assert (o["images"], o["out"], o["epochs"], o["batch"], o["seed"], o["size"]) == (
        "data/cali_dataset", Path("results/W6A6"), 2, 1, 42, 512)  # fmt: skip
    assert (recipe.name, recipe.bits("unet.conv_in")) == ("W6A6", (6, 6))
    assert config.options["method_options"] == {"alpha": 0.3, "beta": 0.3, "centre": False}
    assert (
        recipe.layer("unet.conv_in").split
        and not recipe.layer("vae.encoder.conv_in").split
        and recipe.zero_point == "integer"
    )
    assert recipe.modules == ("encoder", "unet", "decoder") and recipe.at_least == AT_LEAST
    assert {"device", "act", f"{B}ckpt", f"{B}align_method", f"{Q}Unet_train.scheduler", f"{Q}Vae.only_weight"} <= {
        *unused}  # fmt: skip
    assert not {"cali_img_path", f"{B}seed", f"{Q}Unet.split", f"{Q}output_modelpath"} & {*unused}
    told = "\n".join(config.warnings)
    assert all(key in told and why in told for key, why in unused.items()) and len(config.warnings) < 10


def test_a_u_file_quantizes_the_unet_alone_and_tells_what_then_has_no_use(write):
    config = read_options(write(U, {f"{Q}Vae": {"split": "?"}, f"{Q}encoder_train": STAGE}), "calibrate")
    assert config.options["recipe"].modules == ("unet",) and config.options["epochs"] == 2
    assert config.unused[f"{Q}Vae"] == f"{Q}only_Unet is True" == config.unused[f"{Q}encoder_train"]


def test_a_vae_with_other_bits_is_an_exception_to_the_unets(write):
    changes = {f"{Q}Vae.weight_quant_bits": 8, f"{Q}Vae.act_quant_bits": 8}
    recipe = read_options(write(UV, changes), "calibrate").options["recipe"]
    assert recipe.bits("unet.conv_in") == (6, 6) and recipe.bits("vae.encoder.conv_in") == (8, 8)
    assert recipe.bits("unet.conv_out") == (8, 8) and recipe.name == "W6A6 VAE W8A8"


def test_an_inference_file_names_tiles_colours_and_files(write):
    config = read_options(write(INFERENCE, {f"{B}align_method": "wavelet"}), "upscale")
    o = config.options
    assert (o["tile"], o["overlap"], o["colour"], o["model"]) == (64, 32, "wavelet", "osediff")
    assert o["released"] == [Path("u.pth"), Path("v.pth")] and o["output"] == Path("results/W6A6/RealSR")
    assert o["recipe"].name == "W6A6" and "tile_config.vae_decoder_tiled_size" in config.unused
    plain = read_options(write(INFERENCE, {f"{Q}quantize": False, f"{B}align_method": ...}), "upscale")
    assert plain.options["released"] == [] and plain.options["recipe"] is None and "colour" not in plain.options
    assert plain.unused[f"{Q}Unet"] == f"{Q}quantize is False"


WRONG = [  # file, key, value, what is said
    (UV, "devise", "cpu", r"config.yaml has keys that .* do not have: devise \(line \d+\)"),
    (UV, f"{Q}Unet.splitt", True, r"do not have: quantize_config.Unet.splitt \(line \d+\)"),
    (UV, f"{Q}output_modelpath", ..., "quantize_config.output_modelpath is missing"),
    (UV, "quantize_config", ["Unet"], "quantize_config is .*; here it must be a valid dictionary."),
    (
        UV,
        f"{Q}Unet.weight_quant_bits",
        "six",
        r"config.yaml, line \d+: quantize_config.Unet.weight_quant_bits is 'six'",
    ),
    (UV, f"{Q}Unet.weight_quant_bits", 32, "Unet.weight_quant_bits is 32; .* less than or equal to 16"),
    (UV, f"{Q}Unet.weight_sym", True, "Unet.weight_sym is True; here it must be False"),
    (UV, f"{Q}Vae.act_sign", True, "Vae.act_sign is True"),
    (UV, f"{Q}Unet.layer_type", "normal_quant", "Unet.layer_type is 'normal_quant'; here it must be '2Dquant'"),
    (UV, f"{Q}Unet.method", "saw", "Unet.method is 'saw'"),
    (UV, f"{Q}Unet_train.loss_function", "l1", "Unet_train.loss_function is 'l1'"),
    (U, f"{Q}loss_function", "l1", "loss_function is 'l1'"),
    (UV, f"{B}upscale", 2, "basic_config.upscale is 2"),
    (UV, f"{Q}Unet_train.cali_epochs", 3, "Unet_train.cali_epochs 3, encoder_train.cali_"),
    (UV, f"{Q}Unet_train.cali_epochs", True, "cali_epochs is True; here it must be a valid integer"),
    (UV, f"{Q}encoder_train.cali_epochs", 0, "encoder_train.cali_epochs is 0"),
    (UV, f"{Q}Unet.s_alpha", 0.5, "Unet.s_alpha and .*Vae.s_alpha differ"),
    (UV, f"{Q}quantize", False, "quantize_config.quantize is False; here it must be True"),
    (U, f"{Q}only_Unet", False, "quantize_config.Vae is missing"),
    (U, f"{Q}only_Unet", "yes", "only_Unet is 'yes'; here it must be a valid boolean"),
    (INFERENCE, "cali_img_path", ..., "is a file for `upscale`, not for `calibrate`"),
]


@pytest.mark.parametrize(("content", "key", "value", "message"), WRONG, ids=[row[1] for row in WRONG])
def test_a_wrong_value_is_refused_and_its_key_named(write, content, key, value, message):
    with pytest.raises(ValueError, match=message):
        read_options(write(content, {} if content is INFERENCE else {key: value}), "calibrate")


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "a/b", ".."])
def test_a_data_set_is_a_name_and_never_leads_elsewhere(write, name):
    with pytest.raises(ValueError, match=r"dataset is '.*'; here it must match"):
        read_options(write(INFERENCE, {"dataset": name}), "upscale")


# -- YAML that says two things, or too much ---------------------------------------------------------------------------

BOMB = "\n".join(["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])
STRANGE = {
    "seed: 1\nname: x\nseed: 2": "line 3: seed is given twice, first in line 1",
    "a:\n  Unet: {split: True}\n  Unet: {split: False}": "line 3: a.Unet is given twice, first in line 2",
    "a: {b: 1, 'b': 2}": "line 1: a.b is given twice, first in line 1",
    "a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x": "line 4: c.<< is given twice",
    "- 1": "is not a configuration",
    "": "is not a configuration",
    "a: 1\nseed: 042": "line 2: seed is 042, which readers of YAML take differently .here 34.; write it plainly",
    "a: 1:30": "a is 1:30, which .*here 90",
    "a: 1_000": "a is 1_000, which",
    "a: [1, 1:30.5]": "a.1 is 1:30.5, which",
    "x: 1\na: .nan": "line 2: a is .nan, which is no finite number",
    "a: [-.inf]": "a.0 is -.inf, which is no finite",
    "a: 1.0e+400": "which is no finite",
    f"a: {'9' * 5000}": "which is no finite",
    "a: 2021-13-45": "which is no finite number or date",
    "a: !!int x": "which is no finite number",
    "a: !!float nan": "which is no finite",
    "x: 1\n\ta: 1": "line 2: .*found character '.t' that cannot start any token",
    "x: 1\na: [1": "line 2: while parsing a flow sequence, expected",
    "x: 1\na: *b": "line 2: found undefined alias",
    "a: 1\n---\nb: 2": "line 2: expected a single document in the stream, but found another document",
    "a: !!python/object/apply:os.system ['touch it_ran']": "line 1: could not determine a constructor",
    "a: &a [*a]": "line 1: a.0 holds itself",
    "a: &a\n  b: *a": "a.b holds itself",
    "a: &a\n  <<: *a": "a holds itself",
    "1: 2": "line 1: the file has a key that is no name",
    "a: {? [1] : 2}": "a has a key that is no name",
    "a: " + "[" * 3000: "nested too deeply",
    BOMB: "makes more than 10,000 values, as aliases",
    f"a: {'x' * 100_001}": "cannot be read: it has more than 100,000 bytes",
    "a: 0b11": "a is 0b11, which .*here 3",
    "a: 1\nsplit: yes": "line 2: split is yes, which .*here True",
    "a: {b: [NO]}": "a.b.0 is NO, which .*here False",
    "x: &x {a: 042}\ny:\n  <<: [*x]": "x.a is 042",
    "x: &x {a: 1}\ny:\n  <<: *x\n  a: 2\n  a: 3": "line 5: y.a is given twice, first in line 4",
    "a: &a\n  <<: [*a]": "a holds itself",
    "a: &a\n  <<: &s [*s]": "a.0 holds itself",
    "a:\n  <<: 3": "expected a mapping",
    b"a: \xff": "is not a YAML file",
    "a: \0": "is not a YAML file",
}


@pytest.mark.parametrize("text", STRANGE, ids=lambda text: repr(text[:20]))
def test_yaml_that_says_two_things_or_too_much_is_refused_with_its_line(write, text):
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"^\S*config.yaml[, ].*{STRANGE[text]}") as refused:
        strict_yaml.read_strict(write(text))
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value) and time.process_time() - start < 3


def bombs():
    """Files of the released code's own keys whose aliases multiply, in values and in merged keys."""
    keys = ("Unet_train", "encoder_train", "decoder_train", "Unet", "Vae", "act")
    lists = [f"  {key}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i, key in enumerate(keys, 1)]
    yield "device: &a0 [1, 1]\nquantize_config:\n" + "\n".join(lists)
    yield "quantize_config:\n  Unet: &u0 {split: true}\n" + "\n".join(
        f"  Vae{i}: &u{i} {{<<: [{', '.join([f'*u{i - 1}'] * 9)}]}}" for i in range(1, 30)
    )
    yield "device: &d0 {a: 1, b: 1}\nact: &d1 {a: *d0, b: *d0}\nscale:\n" + "\n".join(
        f"  k{i}: &d{i} {{a: *d{i - 1}, b: *d{i - 1}}}" for i in range(2, 200)
    )


def test_aliases_that_multiply_under_known_keys_are_refused_at_once(write):
    for text in bombs():
        start = time.process_time()
        with pytest.raises(ValueError, match="makes more than 10,000 values"):
            read_options(write(text), "calibrate")
        assert time.process_time() - start < 3


def test_a_wrong_value_that_is_merged_in_or_has_an_odd_name_is_told_with_a_line(write):
    for extra, words in (
        ("{<<: [*x]}", r"line 1: quantize_config.Unet.split is 'x'"),
        ("{split: y, <<: *x}", r"quantize_config.Unet.split is 'y'"),
    ):
        content = copy.deepcopy(UV)
        content["quantize_config"]["Unet"] = "HERE"
        block = yaml.dump({"device": BLOCK | {"split": "x"}}, sort_keys=False, default_flow_style=True, width=9999)
        text = block.replace("{device: ", "device: &x ").replace("}}", "}")
        del content["device"]
        text += yaml.dump(content, Dumper=Plain, sort_keys=False).replace("HERE", extra)
        with pytest.raises(ValueError, match=words):
            read_options(write(text), "calibrate")
    for key in (".a", "", "a.b", "x" * 500):
        with pytest.raises(ValueError, match=r"do not have: .*\(line 1\)") as refused:
            read_options(write(f"'{key}': 1\n" + yaml.dump(UV, Dumper=Plain)), "calibrate")
        assert len(str(refused.value)) < 400


def test_anchors_merges_and_other_encodings_are_read(write):
    text = (
        "base: &b {split: True, alpha: 0.3}\nUnet:\n  <<: *b\n  split: False\nVae: *b\nname: 'Größe'\nn: [*b, 0, 0x1F]"
    )
    for content in (text, text.encode("utf-16"), text.replace("\n", "\r\n")):
        values, lines = strict_yaml.read_strict(write(content))
        assert values["Unet"] == {"split": False, "alpha": 0.3} and values["Vae"] == values["base"] == values["n"][0]
        assert values["name"] == "Größe" and values["n"][1:] == [0, 31]
        assert (lines["Unet.split"], lines["Vae"], lines["name"]) == (4, 5, 6)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("pipe", "it is no file"), (".", "it is no file"), ("none.yaml", "No such file")):
        with pytest.raises(ValueError, match=f"cannot be read: {why}"):
            strict_yaml.read_strict(tmp_path / name)
