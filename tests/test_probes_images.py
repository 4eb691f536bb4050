"""Patches of a vision transformer lie on the parts of a face that they are said to lie on."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from models import noise

from specsegdiff.errors import CheckpointError, ConfigError, ShapeError
from specsegdiff.probes.core import ProbeConfig, RegionProbes
from specsegdiff.probes.images import FACE_PARTS, FaceReader, Preparation, patch_labels
from specsegdiff.probes.pooling import IGNORE, pool_all, pool_regions

SIZE, PATCH, REGISTERS = 64, 8, 4
CLASSES = ("background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear")
CLASSES += ("r_ear", "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth")
PLAIN = Preparation((SIZE, SIZE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
COLOURS = {
    "background": (0.1, 0.2, 0.9),
    "skin": (0.9, 0.7, 0.6),
    "nose": (0.7, 0.5, 0.3),
    "l_eye": (0.1, 0.6, 0.2),
    "r_eye": (0.1, 0.6, 0.4),
    "u_lip": (0.9, 0.1, 0.2),
    "l_lip": (0.7, 0.1, 0.2),
    "hair": (0.2, 0.1, 0.0),
}


def backbone(seed=0, registers=REGISTERS):
    config = transformers.DINOv3ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        num_register_tokens=registers,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.DINOv3ViTModel(config).eval()


def segformer(names=CLASSES):
    config = transformers.SegformerConfig(
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return transformers.SegformerForSemanticSegmentation(config).eval()


class Painter:
    """A face parser that knows the colours that the test paints with, at a quarter of the size."""

    config = SimpleNamespace(id2label=dict(enumerate(COLOURS)))

    def __call__(self, pixel_values):
        seen = (0.5 * pixel_values + 0.5)[:, :, 2::4, 2::4]
        paint = torch.tensor(list(COLOURS.values()))[:, :, None, None]
        return SimpleNamespace(logits=-(seen[:, None] - paint).square().sum(2))


def face(*, tampered=False, seed=0):
    """A drawn face ``(3, h, w)``; a tampered one has a fine checkerboard on its mouth alone."""
    image = torch.tensor(COLOURS["background"])[:, None, None].repeat(1, SIZE, SIZE)

    def paint(name, top, bottom, left, right):
        image[:, top:bottom, left:right] = torch.tensor(COLOURS[name])[:, None, None]

    paint("hair", 0, 16, 8, 56)
    paint("skin", 16, 64, 8, 56)
    paint("l_eye", 24, 32, 16, 24)
    paint("r_eye", 24, 32, 40, 48)
    paint("nose", 32, 40, 24, 40)
    paint("u_lip", 48, 52, 24, 40)
    paint("l_lip", 52, 56, 24, 40)
    image = image + noise(3, SIZE, SIZE, scale=0.01, seed=seed)
    if tampered:
        checks = (torch.arange(8)[:, None] + torch.arange(16)) % 2
        image[:, 48:56, 24:40] += 0.1 * checks
    return image.clamp(0, 1)


PARTS = ("mouth region", "eye region", "nose", "skin", "hair")


def reader(parser=None, **changes):
    how = {"backbone_input": PLAIN, "parser_input": PLAIN, "parts": PARTS} | changes
    return FaceReader(how.pop("backbone", None) or backbone(), parser or Painter(), **how)


# ------------------------------------------------------------------ tokens


def test_patches_carry_no_class_token_and_no_register():
    images = torch.stack([face(), face(tampered=True)])
    look = reader()
    found = look(images)
    with torch.no_grad():
        states = look.backbone(pixel_values=(images - 0.5) / 0.5).last_hidden_state
    assert states.shape[1] == 1 + REGISTERS + 64
    torch.testing.assert_close(found.tokens, states[:, 1 + REGISTERS :])
    torch.testing.assert_close(found.cls, states[:, 0])
    assert found.grid == (8, 8)
    assert not found.tokens.requires_grad


def test_a_patch_is_where_its_number_says():
    look = reader()
    # without attention, a patch knows itself alone
    with torch.no_grad():
        for layer in look.backbone.model.layer:
            layer.attention.o_proj.weight.zero_()
            layer.attention.o_proj.bias.zero_()
    plain, marked = torch.full((2, 1, 3, SIZE, SIZE), 0.5)
    marked = marked.clone()
    marked[..., 2 * PATCH : 3 * PATCH, 5 * PATCH : 6 * PATCH] = 1.0
    changed = (look(plain).tokens != look(marked).tokens).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 * 8 + 5]


def test_a_drawn_face_has_its_parts_where_they_were_drawn():
    found = reader()(face()[None])
    plane = found.labels[0].reshape(8, 8)
    names = [[PARTS[i].split()[0] if i != IGNORE else "-" for i in row] for row in plane.tolist()]
    assert names[0] == ["-", *["hair"] * 6, "-"]
    assert names[3] == ["-", "skin", "eye", "skin", "skin", "eye", "skin", "-"]
    assert names[4] == ["-", "skin", "skin", "nose", "nose", "skin", "skin", "-"]
    # upper and lower lip share these patches, and count together
    assert names[6] == ["-", "skin", "skin", "mouth", "mouth", "skin", "skin", "-"]


def test_pictures_of_any_size_are_stretched_alike_for_both():
    image = face()[None]
    wide = torch.nn.functional.interpolate(image, (2 * SIZE, 3 * SIZE), mode="nearest")
    assert torch.equal(reader()(wide).labels, reader()(image).labels)


def test_the_tampered_mouth_is_what_the_decision_rests_on():
    spoof = torch.arange(36) % 2 == 0
    images = torch.stack([face(tampered=bool(s), seed=i) for i, s in enumerate(spoof)])
    look = reader()
    found = look(images)
    pooled = [
        pool_regions(found.tokens[k], found.labels[k], count=len(PARTS))
        for k in (slice(16), slice(16, 26))
    ]
    config = ProbeConfig(look.regions, size=32, penalty=10.0)
    probes = RegionProbes.fit(pooled[0], spoof[:16], config).weighed(pooled[1], spoof[16:26])
    decisions = probes.decide(found.tokens[26:], found.labels[26:])
    assert [d.is_spoof for d in decisions] == spoof[26:].tolist()
    assert {d.rests_on[0] for d in decisions} == {"mouth region"}
    # the ablation runs through the same code
    assert pool_all(found.cls[:, None]).values.shape == (36, 1, 32)


# ------------------------------------------------------------------ from pixels to patches


def test_the_part_of_a_patch_is_that_of_most_of_its_pixels():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 3, (2, 12, 20), generator=rng)
    found = patch_labels(labels, (3, 4), count=3).reshape(2, 3, 4)
    for item in range(2):
        for row in range(3):
            for column in range(4):
                own = labels[item, 4 * row : 4 * row + 4, 5 * column : 5 * column + 5].flatten()
                votes = torch.bincount(own % 4, minlength=4).tolist()  # -1 is counted last
                expected = votes.index(max(votes))
                assert found[item, row, column] == (expected if expected < 3 else IGNORE)


def test_maps_that_do_not_fit_are_refused():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    for bad, grid in ((labels, (5, 4)), (labels[0], (2, 2)), (labels.float(), (2, 2))):
        with pytest.raises(ShapeError):
            patch_labels(bad, grid, count=2)
    for value in (-2, 2):
        with pytest.raises(ShapeError, match="from -1 to 1"):
            patch_labels(labels + value, (2, 2), count=2)


# ------------------------------------------------------------------ loading


def processor(kind, size=SIZE, **options):
    return kind(size={"height": size, "width": size}, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    encoder, parser = (tmp_path_factory.mktemp(name) for name in ("encoder", "parser"))
    backbone().save_pretrained(encoder)
    processor(transformers.DINOv3ViTImageProcessor).save_pretrained(encoder)
    segformer().save_pretrained(parser)
    processor(transformers.SegformerImageProcessor, size=128).save_pretrained(parser)
    return encoder, parser


def test_both_models_load_from_folders_as_they_were_saved(folders):
    look = FaceReader.from_pretrained(*folders)
    images = torch.stack([face(), face(seed=1)])
    found = look(images)
    assert look.regions == FACE_PARTS
    assert look.parser_input.size == (128, 128)
    with torch.no_grad():
        states = backbone()(pixel_values=look.backbone_input(images)).last_hidden_state
    torch.testing.assert_close(found.tokens, states[:, 1 + REGISTERS :])
    assert found.labels.shape == (2, 64)
    assert set(found.labels.unique().tolist()) <= set(range(-1, len(FACE_PARTS)))


def test_our_preparation_is_the_processors(folders):
    own = transformers.AutoImageProcessor.from_pretrained(folders[0])
    image = torch.nn.functional.interpolate(face()[None], (100, 90), mode="bilinear")
    # theirs takes bytes, and rounds nothing after that
    pixels = (255 * image).round().byte()
    expected = own(list(pixels), return_tensors="pt").pixel_values
    torch.testing.assert_close(Preparation.of(own)(pixels / 255), expected, rtol=0, atol=1e-4)


def test_folders_without_such_models_are_refused(folders, tmp_path):
    with pytest.raises(CheckpointError, match="vision transformer"):
        FaceReader.from_pretrained(tmp_path, folders[1])
    with pytest.raises(CheckpointError, match="semantic segmentation"):
        FaceReader.from_pretrained(folders[0], folders[0])


def test_classes_are_found_by_name_and_a_part_without_one_is_refused():
    files = [f"{name}.png" if name != "background" else name for name in reversed(CLASSES)]
    look = reader(segformer(files), parts=FACE_PARTS)
    assert look.part_of_class[files.index("u_lip.png")] == 0
    assert look.part_of_class[files.index("background")] == IGNORE
    # lips and what is between them are one part
    lips = look.part_of_class[[files.index(f"{name}.png") for name in ("mouth", "l_lip")]]
    assert lips.tolist() == [0, 0]
    with pytest.raises(ConfigError, match=r"'ear' .*classes are"):
        reader(parts=FACE_PARTS)
    with pytest.raises(ConfigError, match="shares classes"):
        reader(parts=("eye region", "eye"))
    with pytest.raises(ConfigError, match="no concept 'beak'"):
        reader(parts=("beak",))


def test_geometry_that_would_move_patches_is_refused():
    with pytest.raises(ConfigError, match="shortest"):
        Preparation.of(SimpleNamespace(size={"shortest_edge": 224}))
    with pytest.raises(ConfigError, match="whole number of patches"):
        reader(backbone_input=Preparation((60, 64), PLAIN.mean, PLAIN.std))


def test_a_backbone_that_hides_its_registers_is_refused():
    model = backbone()
    model.config.num_register_tokens = 2
    with pytest.raises(ConfigError, match="3 tokens before 64 patches"):
        reader(backbone=model)(face()[None])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"\(b, 3, h, w\)"),
        (torch.zeros(1, 1, 8, 8), "three colours"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide bytes"),
        (torch.full((1, 3, 8, 8), torch.nan), "finite"),
        (torch.full((1, 3, 8, 8), -0.5), "before any normalisation"),
        (torch.zeros(0, 3, 8, 8), "pictures"),
    ],
)
def test_pictures_that_are_none_are_refused(images, message):
    with pytest.raises(ShapeError, match=message):
        reader()(images)
