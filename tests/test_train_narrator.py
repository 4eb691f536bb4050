"""The four stages on tiny models: what is trained, what is saved, and that runs repeat."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import noise
from torch.distributed.fsdp import FullyShardedDataParallel

from specsegdiff.cells import RegionGrid
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.narration.parsing import Finding, write_cells, write_findings
from specsegdiff.narration.picture import PictureConfig, draw_regions
from specsegdiff.narration.policy import PolicyConfig, completion_mask
from specsegdiff.narration.prompts import Prompt

pytest.importorskip("lightning", reason="training needs the extra 'train'")
pytest.importorskip("transformers", reason="models need the extra 'vlm'")
pytest.importorskip("peft", reason="adapters need the extra 'vlm'")

from vlms import FAMILIES, make_vlm

from specsegdiff.narration import vlm
from specsegdiff.narration.vlm import CELLS_ADAPTER, TEXT_ADAPTER, VLMNarrator, using, with_adapter
from specsegdiff.train import narrator
from specsegdiff.train.examples import Example, export, read_examples
from specsegdiff.train.narrator import (
    Answered,
    Examples,
    NarratorConfig,
    PolicyModule,
    Share,
    SupervisedModule,
    adapted,
    answer_log_probs,
    draw_seed,
    read_config,
    train,
)
from specsegdiff.train.small_vlm import SmallConfig

# Lightning's advice on workers, folders and intervals
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parent.parent
STAGES = ("sft-1", "grpo-1", "sft-2", "grpo-2")
SMALL = "idefics3"


def example(number, query):
    ids = ("15", "2")
    if query == 1:
        return Example(
            f"r{number}", 1, f"{number}.png", Prompt("S", "Where?"), write_cells(ids), truth=ids
        )
    said = [Finding(id, "speech", "low", "vowel", "Dull.") for id in ids]
    rows = [{"region": f.id, **{k: v for k, v in asdict(f).items() if k != "id"}} for f in said]
    prompt = Prompt("S", f"What, at {number}?")
    return Example(f"r{number}", 2, f"{number}.png", prompt, write_findings(said), ids, tuple(rows))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four examples of each query, with their pictures."""
    folder = tmp_path_factory.mktemp("examples")
    grid = RegionGrid(Axes(StftConfig(), 16_000))
    config = PictureConfig(width=56, height=56, axes=False, ids=False)
    for number in range(4):
        draw_regions(noise(16_000, seed=number), grid, config=config).save(folder / f"{number}.png")
    path = folder / "examples.jsonl"
    export([example(number, query) for number in range(4) for query in (1, 2)], path)
    return path


def config_of(corpus, stage, **changes):
    small = NarratorConfig(
        stage=stage,
        model="tiny",
        examples=str(corpus),
        steps=3,
        batch=2,
        learning_rate=1e-2,
        warmup=1,
        validate_every=2,
        rank=4,
        alpha=8,
        policy=PolicyConfig(group=2),
        max_tokens=6,
        k=2,
    )
    return replace(small, **changes)


def run(corpus, out, stage, family=SMALL, **changes):
    options = {name: changes.pop(name) for name in ("resume",) if name in changes}
    config = config_of(corpus, stage, **changes)
    return train(config, out, accelerator="cpu", loaded=make_vlm(family), **options)


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def distance(first, second):
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# ------------------------------------------------------------------ data


def test_epochs_hold_every_example_once_and_processes_share_their_steps(corpus):
    items = Examples(read_examples(corpus)[:4], corpus.parent, count=12, seed=0)
    ids = [(items[draw].example.id, items[draw].example.query) for draw in range(12)]
    assert all(len(set(ids[a : a + 4])) == 4 for a in (0, 4, 8))
    assert ids[:4] != ids[4:8] or ids[4:8] != ids[8:]

    def draws(rank, world, step=0):
        trainer = SimpleNamespace(world_size=world, global_rank=rank)
        module = SimpleNamespace(trainer=trainer, global_step=step)
        return list(Share(module, steps=3, batch=4))

    assert draws(0, 1) == list(range(12))
    assert draws(0, 1, step=2) == list(range(8, 12))
    # every step of two processes is the step of one
    both = [draws(0, 2), draws(1, 2)]
    for step in range(3):
        together = both[0][2 * step : 2 * step + 2] + both[1][2 * step : 2 * step + 2]
        assert together == list(range(4 * step, 4 * step + 4))


# ------------------------------------------------------------------ log-probabilities


def test_a_batch_has_the_log_probabilities_of_its_items(corpus):
    """Padding on the left and on the right changes no number."""
    model, processor = make_vlm(SMALL)
    module = SupervisedModule(config_of(corpus, "sft-1"), model, processor)
    module.model.eval()
    examples = read_examples(corpus)
    picked = [examples[0], replace(examples[2], prompt=Prompt("S", "Where, once more, please?"))]
    items = Examples(picked, corpus.parent, count=2, seed=0)
    batch = sorted((items[0], items[1]), key=lambda item: item.example.id)
    rows = [[40, 41, 42, 2], [50, 2]]

    def log_probs(items, rows):
        ids, mask = module._filled(rows)
        with torch.no_grad():
            found = answer_log_probs(module.model, Answered(module._encoded(items), ids, mask))
        return found.masked_fill(~mask, 0)

    together = log_probs(batch, rows)
    for place, row in enumerate(rows):
        alone = log_probs(batch[place : place + 1], [row])[0]
        # float32 sums in another order
        assert torch.allclose(together[place, : len(row)], alone, atol=1e-4)
    assert together[1, 2:].abs().sum() == 0


@pytest.mark.parametrize("family", [SMALL, "qwen2.5-vl"])
def test_the_likeliest_answer_is_likeliest_in_training_too(corpus, family):
    """Drawing and training see one model: shift, padding and kinds of tokens are alike."""
    model, processor = make_vlm(family)
    module = SupervisedModule(config_of(corpus, "sft-1"), model, processor)
    module.model.eval()
    chosen = read_examples(corpus)
    picked = [chosen[0], replace(chosen[2], prompt=Prompt("S", "And where, please?"))]
    items = Examples(picked, corpus.parent, count=2, seed=0)
    inputs = module._encoded([items[0], items[1]])
    with torch.no_grad():
        ids = module.model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
        ids = ids[:, inputs["input_ids"].shape[1] :]
        _, mask = module._filled(ids.tolist())
        # so cold that all but the likeliest token have nothing
        found = answer_log_probs(module.model, Answered(inputs, ids, mask), temperature=1e-3)
    assert found[mask].abs().max() < 0.1


def test_draws_have_the_probabilities_that_training_gives_them(corpus):
    """A ratio starts at 1: temperature and forbidden tokens are those of the draw."""
    model, processor = make_vlm(SMALL)
    module = PolicyModule(config_of(corpus, "grpo-1"), model, processor)
    item = Examples(read_examples(corpus)[:1], corpus.parent, count=1, seed=0)[0]
    inputs = module._encoded([item], times=3)
    forbidden = vlm.forbidden_tokens(module.model, processor)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = module.model.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=True,
            temperature=0.7,
            top_k=0,
            suppress_tokens=forbidden,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = drawn.sequences[:, inputs["input_ids"].shape[1] :]
        expected = torch.stack(drawn.scores, 1).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        mask = completion_mask(ids, vlm.end_tokens(module.model, processor))
        answered = Answered(inputs, ids, mask)
        found = answer_log_probs(module.model, answered, temperature=0.7, forbidden=forbidden)
    # float32, with and without a cache
    assert torch.allclose(found[mask], expected[mask], atol=1e-4)


# ------------------------------------------------------------------ stages


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through_the_four_stages(corpus, tmp_path, family):
    """Two adapters come out of four stages, and a narrator takes both."""
    if family != SMALL:
        pytest.importorskip("torchvision", reason="transformers reads these pictures with it")
    folder = None
    kept = {}
    for stage in STAGES:
        start = folder if stage.startswith("grpo") else None
        more = {"adapter": str(start)} if start else {}
        folder = run(corpus, tmp_path / stage, stage, family, steps=1, **more)
        kept[stage] = folder
        files = {file.name for file in folder.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    # a fresh adapter starts with B = 0; each stage moved it
    assert any(v.any() for k, v in tensors(kept["sft-1"]).items() if "lora_B" in k)
    model, processor = make_vlm(family)
    model = with_adapter(model, kept["grpo-1"], name=CELLS_ADAPTER)
    model = with_adapter(model, kept["grpo-2"], name=TEXT_ADAPTER)
    assert set(VLMNarrator(model, processor).model.peft_config) == {CELLS_ADAPTER, TEXT_ADAPTER}


def test_sft_learns_an_answer_by_heart(corpus, tmp_path):
    """Loss falls far below that of a guess: adapter, mask and shift are right."""
    losses = []
    run(corpus, tmp_path, "sft-1", steps=20, dropout=0.0, rank=8, alpha=32, validate_every=20)
    text = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    place = text[0].split(",").index("loss")
    losses = [float(line.split(",")[place]) for line in text[1:] if line.split(",")[place]]
    assert losses[-1] < 0.5 * losses[0]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(corpus, tmp_path, monkeypatch):
    whole = run(corpus, tmp_path / "whole", "sft-1", dropout=0.3)
    compute, count = narrator.answer_log_probs, 0

    class Interrupted(Exception):
        pass

    def fail(*args, **options):
        nonlocal count
        count += 1
        if count == 3:
            raise Interrupted
        return compute(*args, **options)

    monkeypatch.setattr(narrator, "answer_log_probs", fail)
    with pytest.raises(Interrupted):
        run(corpus, tmp_path / "broken", "sft-1", dropout=0.3)
    monkeypatch.setattr(narrator, "answer_log_probs", compute)
    stored = torch.load(tmp_path / "broken" / "last.ckpt", weights_only=False)
    # the adapter only
    assert stored["state_dict"]
    assert all(".lora_" in name and ".cells." in name for name in stored["state_dict"])
    resumed = run(corpus, tmp_path / "broken", "sft-1", dropout=0.3, resume=True)
    assert distance(whole, resumed) <= 1e-6
    other = run(corpus, tmp_path / "other", "sft-1", dropout=0.3, seed=1)
    assert distance(whole, other) > 1e-4


def module_for(corpus, stage, **changes):
    model, processor = make_vlm(SMALL)
    kind = PolicyModule if stage.startswith("grpo") else SupervisedModule
    module = kind(config_of(corpus, stage, **changes), model, processor)
    module.log = module.log_dict = lambda *args, **options: None
    module.all_gather = lambda value: value
    return module


@pytest.mark.parametrize("stage", ["sft-1", "grpo-1"])
def test_the_parts_of_a_batch_average_to_the_whole(corpus, stage, monkeypatch):
    """What two processes compute is what one does: gradients are averaged over processes."""
    module = module_for(corpus, stage, dropout=0.0, temperature=2.0)
    monkeypatch.setattr(type(module), "global_step", 0)
    # random models seldom answer in form; a reward for one letter has a spread
    if stage == "grpo-1":
        monkeypatch.setattr(
            module, "_parts", lambda example, text: {"reward": float(sum(map(ord, text)) % 7)}
        )
    chosen = [e for e in read_examples(corpus) if e.query == 1]
    items = Examples(chosen, corpus.parent, count=4, seed=0)
    batch = [items[draw] for draw in range(4)]

    def gradient(batch):
        loss = module.training_step(batch, 0)
        module.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad])

    whole = gradient(batch)
    halves = (gradient(batch[:2]) + gradient(batch[2:])) / 2
    assert whole.abs().max() > 0
    # float32 sums in another order
    assert torch.allclose(whole, halves, atol=1e-5 * float(whole.abs().max()) + 1e-7)


def test_flat_groups_that_are_dropped_are_not_counted_either(corpus, monkeypatch):
    """On one process dapo divides by what bnpo counts: the tokens that stay."""
    chosen = [e for e in read_examples(corpus) if e.query == 1]
    items = Examples(chosen, corpus.parent, count=2, seed=0)
    batch = [items[0], items[1]]
    flat = batch[0].example.id

    def reward(example, text):
        return {"reward": 1.0 if example.id == flat else float(sum(map(ord, text)) % 7)}

    def gradient(reduction, *, drop):
        policy = PolicyConfig(group=4, reduction=reduction, drop_flat=drop)
        module = module_for(corpus, "grpo-1", temperature=2.0, policy=policy)
        monkeypatch.setattr(type(module), "global_step", 0)
        module._parts = reward
        module.training_step(batch, 0).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad])

    kept = gradient("bnpo", drop=True)
    assert kept.abs().max() > 0
    # on policy a flat group has no gradient of its own, so only the divisor can differ
    assert not torch.allclose(kept, gradient("bnpo", drop=False), rtol=0.01)
    assert torch.allclose(gradient("dapo", drop=True), kept, rtol=1e-5)


def test_gradients_are_clipped_by_fsdp_where_it_shards_them(corpus, monkeypatch):
    """Lightning raises there: it cannot know the norm of the whole gradient."""

    class Sharded(FullyShardedDataParallel):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def clip_grad_norm_(self, max_norm, norm_type=2.0):
            clipped.append(("fsdp", max_norm))

    clipped = []
    module = module_for(corpus, "sft-1")
    monkeypatch.setattr(module, "clip_gradients", lambda o, *how: clipped.append(("here", *how)))
    for model in (module, Sharded()):
        monkeypatch.setattr(
            module, "_trainer", SimpleNamespace(strategy=SimpleNamespace(model=model))
        )
        module.configure_gradient_clipping(None, 1.0, "norm")
    assert clipped == [("here", 1.0, "norm"), ("fsdp", 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft-1", "grpo-1"])
def test_two_processes_give_the_adapter_of_one(corpus, tmp_path, stage, monkeypatch):
    """Real processes, real DDP; forked, so that they need not import everything again."""
    letters = lambda self, example, text: {"reward": float(sum(map(ord, text)) % 7)}  # noqa: E731
    monkeypatch.setattr(PolicyModule, "_parts", letters)
    config = config_of(corpus, stage, batch=4, dropout=0.0, temperature=2.0, learning_rate=1e-3)
    folders = [
        train(config, tmp_path / name, accelerator="cpu", loaded=make_vlm(SMALL), **parallel)
        for name, parallel in (("one", {}), ("two", {"devices": 2, "strategy": "ddp_fork"}))
    ]
    start = train(
        replace(config, learning_rate=1e-12),
        tmp_path / "start",
        accelerator="cpu",
        loaded=make_vlm(SMALL),
    )
    moved = distance(folders[0], start)
    assert moved > 1e-4
    # float32 sums in another order, which Adam enlarges where a gradient is near 0
    assert distance(*folders) < 0.02 * moved
    with pytest.raises(ConfigError, match="shared by 2"):
        train(
            replace(config, batch=3),
            tmp_path / "odd",
            accelerator="cpu",
            loaded=make_vlm(SMALL),
            devices=2,
            strategy="ddp_fork",
        )


def test_only_the_stages_adapter_is_trained_and_switching_leaves_no_trace(corpus, tmp_path):
    first = run(corpus, tmp_path, "sft-1", steps=1)
    model, _ = make_vlm(SMALL)
    config = config_of(corpus, "grpo-1", adapter=str(first), reference="start")
    found = adapted(model, config)
    trained = {name for name, value in found.named_parameters() if value.requires_grad}
    assert trained
    assert all(".cells." in name for name in trained)
    assert set(found.peft_config) == {CELLS_ADAPTER, narrator.REFERENCE}
    for adapter in (narrator.REFERENCE, None, "unknown"):
        with using(found, adapter):
            pass
        after = {name for name, value in found.named_parameters() if value.requires_grad}
        assert after == trained
        assert found.active_adapter == CELLS_ADAPTER
    # without an adapter to measure from, the model itself is the reference
    base = adapted(make_vlm(SMALL)[0], replace(config, reference="base"))
    assert set(base.peft_config) == {CELLS_ADAPTER}


def test_seeds_of_draws_depend_on_all_three():
    seeds = {draw_seed(*key) for key in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


# ------------------------------------------------------------------ configuration


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "narrator").glob("*.yaml")), ids=str)
def test_the_shipped_configurations_are_valid(path):
    config = read_config(path)
    assert config.stage == path.stem.removeprefix("small-")
    # what a run writes is what it read
    again = json.loads(json.dumps(asdict(config)))
    parts = {"policy": PolicyConfig(**again["policy"]), "small": SmallConfig(**again["small"])}
    assert NarratorConfig(**again | parts) == config


def test_there_is_a_configuration_for_every_stage():
    small = {f"small-{stage}" for stage in ("base", *STAGES)}
    found = {path.stem for path in (ROOT / "configs" / "narrator").glob("*.yaml")}
    assert found == small | set(STAGES)


def test_settings_outside_their_domain_are_refused(corpus, tmp_path):
    for changes in ({"rank": 0}, {"dropout": 1.0}, {"temperature": 0.0}, {"max_tokens": 0}):
        with pytest.raises(ConfigError):
            config_of(corpus, "sft-1", **changes)
    with pytest.raises(ConfigError, match="stage must be"):
        config_of(corpus, "dpo")
    only = tmp_path / "one.jsonl"
    export([example(0, 2)], only)
    with pytest.raises(ConfigError, match="no example of Query 1"):
        run(only, tmp_path / "run", "sft-1")
