"""OSEDiff's own row: its prompt, made of tags that are given."""

import shutil

import pytest
import torch
from PIL import Image

from passionsr_lab.fullsize import tags, text
from passionsr_lab.fullsize.load import load_model
from passionsr_lab.imaging.pictures import to_tensor


@pytest.fixture
def picture(tmp_path):
    pixels = torch.randint(0, 256, (8, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    image = Image.fromarray(pixels.numpy())
    image.save(tmp_path / "a.png")
    return image


def test_the_prompt_is_that_of_osediffs_script_and_conditions_the_unet(here, picture, tmp_path):
    here("sd21", "osediff.pkl")
    plain, told = load_model("osediff"), load_model("osediff", prompt="brick, wall")
    x = to_tensor(picture)[None]
    assert told.prompt.describe(x) == ["brick, wall, ,"]
    with torch.no_grad():
        expected = told.prompt.text_encoder(tags.tokenize(["brick, wall, ,"]))
        restored = told.restore(told.prepare(x), expected.last_hidden_state) / 2 + 0.5
    torch.testing.assert_close(told(x), restored[..., :32, :40].clamp(0, 1))
    assert not torch.equal(told(x), plain(x))
    assert torch.equal(told.prune()(x), plain(x)), "without the branch it is PassionSR-FP"
    with pytest.raises(ValueError, match="prune"):
        told.save(tmp_path / "own")


def test_tags_come_from_a_table_a_function_or_a_string(here, picture, tmp_path):
    (tmp_path / "tags.csv").write_text('image,tags\na.png,"brick, wall"\n')
    x = to_tensor(picture)
    ways = (tmp_path / "tags.csv", str(tmp_path / "tags.csv"), "brick, wall", lambda picture: "brick, wall")
    assert [tags.tagger(way)(x) for way in ways] == ["brick, wall"] * 4
    folder = here("sd21", "osediff.pkl")
    with pytest.raises(ValueError, match=r"columns image,tags"):
        load_model("osediff", prompt=True)
    shutil.copy(tmp_path / "a.png", folder)
    shutil.copy(tmp_path / "tags.csv", folder)
    assert load_model("osediff", prompt=True).prompt.describe(x[None]) == ["brick, wall, ,"]


def test_a_table_knows_pictures_by_their_pixels(picture, tmp_path):
    (tmp_path / "tags.csv").write_text("image,tags\na.png,wall\n")
    table, x = tags.read_tags(tmp_path / "tags.csv"), to_tensor(picture)
    assert table(x) == table(x.clone()) == "wall"
    with pytest.raises(ValueError, match=r"no row for this picture \(10x8 pixels\)"):
        table(1 - x)


@pytest.mark.parametrize(("content", "words"), [
    ("name,tags\na.png,wall\n", "no column 'image'"),
    ("image,tags\nb.png,wall\n", r"b\.png"),
    ("image,tags\na.png,brick, wall\n", "line 2: put tags that have commas into double quotes"),
    ("image,tags\na.png\n", "line 2"),
    ("image,tags\na.png,wall\na.png,brick\n", "line 3: a.png has had other tags"),
])  # fmt: skip
def test_a_table_that_says_two_things_or_nothing_is_refused(picture, tmp_path, content, words):
    (tmp_path / "tags.csv").write_text(content)
    with pytest.raises(ValueError, match=words):
        tags.read_tags(tmp_path / "tags.csv")


def test_tokens_are_those_of_the_tokenizer_that_sd21_ships():
    import gzip

    import clip.simple_tokenizer as simple
    from transformers import CLIPTokenizer

    with gzip.open(simple.default_bpe()) as file:
        merges = file.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = list(simple.bytes_to_unicode().values())
    words = [*symbols, *(s + "</w>" for s in symbols), *("".join(m.split()) for m in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(m.split()) for m in merges], pad_token="!", unk_token="<|endoftext|>"
    )
    prompts = ["", "Grass, sky, a Dog's house, ,", "brick " * 100]
    ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tags.tokenize(prompts), ids)
    assert ids[0].tolist() == [text.START, text.END] + [0] * 75
