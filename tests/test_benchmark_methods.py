"""Methods by name: what is registered, what a plugin adds, and what the package ships."""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from specsegdiff import api
from specsegdiff.benchmark import available, load_detector, load_methods, methods, shipped
from specsegdiff.errors import CheckpointError, ConfigError, DependencyError
from specsegdiff.models.aasist import AASIST
from specsegdiff.models.segdiff import SpecSegDiff

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT.parent / "shared" / "weights" / "aasist"
BASELINES = ("attnlrp", "deepshap", "energy", "gradientshap", "integrated-gradients", "low-energy")
WAVE = 0.1 * torch.randn(1, 4_000, generator=torch.Generator().manual_seed(0))


def register(folder: Path, package: str, lines: str) -> None:
    """Metadata of an installed package that registers methods."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{methods.GROUP}]\n{lines}\n")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of somebody else, with a method that asks its detector."""
    (tmp_path / "their_package.py").write_text(
        "class Loud:\n"
        "    def __init__(self, detector):\n"
        "        self.detector = detector\n"
        "    def __call__(self, wave):\n"
        "        from specsegdiff.frontend import Stft\n"
        "        return Stft().magnitude(wave)\n"
    )
    register(tmp_path, "their_package", "loud = their_package:Loud\nlost = their_package:Gone")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("their_package", None)


def test_the_package_and_its_baselines_are_registered() -> None:
    found = available()
    assert found.keys() >= {"specsegdiff", "addsegdiff", "occlusion", "random", *BASELINES}
    assert list(found) == sorted(found)
    for name in ("specsegdiff", "addsegdiff", "occlusion", "random", *BASELINES):
        assert callable(found[name].load()), name


@pytest.mark.parametrize("name", ["random", *BASELINES])
def test_a_registered_method_explains_a_detector(name: str) -> None:
    pytest.importorskip("zennit", reason="attributions need the extra 'baselines'")
    pytest.importorskip("captum", reason="attributions need the extra 'baselines'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = AASIST.from_preset("tiny", n_samples=4_000).eval()
    (explainer,) = load_methods([name], detector).values()
    heat = explainer(WAVE)
    assert heat.shape == (1, 513, 16)
    assert bool(heat.isfinite().all())
    assert float(heat.std()) > 0


def test_captums_rules_have_a_factory() -> None:
    pytest.importorskip("captum", reason="attributions need the extra 'baselines'")
    entry = EntryPoint("deepshap-captum", "baselines.deepshap:deepshap_captum", methods.GROUP)
    method = entry.load()(AASIST.from_preset("tiny", n_samples=4_000).eval())
    assert method.rules == "captum"
    assert method.references is None
    assert method(WAVE).shape == (1, 513, 16)


def test_a_plugin_is_found_and_gets_the_detector(plugin: Path) -> None:
    detector = object()
    built = load_methods(["random", "loud"], detector)
    assert list(built) == ["random", "loud"]
    assert built["loud"].detector is detector
    assert built["loud"](WAVE).shape == (1, 513, 16)
    with pytest.raises(DependencyError, match="their_package:Gone"):
        load_methods(["lost"], detector)


def test_an_unknown_method_lists_the_known(plugin: Path) -> None:
    with pytest.raises(ConfigError, match=r"no method 'tarot' .*loud.*random.*specsegdiff"):
        load_methods(["tarot"], None)


def test_two_packages_of_one_method_are_an_error(plugin: Path) -> None:
    # the same entry twice, as a checkout that is installed too, is one
    register(plugin / "a", "copy", "random = baselines.controls:Random")
    sys.path.insert(0, str(plugin / "a"))
    assert available()["random"].value == "baselines.controls:Random"
    register(plugin / "b", "rival", "random = their_package:Loud")
    sys.path.insert(0, str(plugin / "b"))
    try:
        with pytest.raises(ConfigError, match=r"two packages register the method 'random'"):
            available()
    finally:
        del sys.path[:2]


def test_only_a_checkout_of_this_package_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(methods, "entry_points", lambda group: ())
    table = f'[project.entry-points."{methods.GROUP}"]\nmine = "their_package:Loud"\n'
    for content in ("", f'[project]\nname = "other"\n{table}', '[project]\nname = "specsegdiff"\n'):
        (tmp_path / "pyproject.toml").write_text(content)
        monkeypatch.setattr(methods, "CHECKOUT", tmp_path / "pyproject.toml")
        assert available() == {}
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "specsegdiff"\n{table}')
    assert available()["mine"].value == "their_package:Loud"
    monkeypatch.setattr(methods, "CHECKOUT", tmp_path / "none.toml")
    assert available() == {}
    installed = EntryPoint("mine", "their_package:Loud", methods.GROUP)
    monkeypatch.setattr(methods, "entry_points", lambda group: (installed,))
    assert available() == {"mine": installed}


# ---------------------------------------------------------------- what the package ships


def test_the_embedded_model_is_a_method() -> None:
    model = shipped.specsegdiff()
    assert isinstance(model, SpecSegDiff)
    assert model.name == api.DEFAULT_MODEL
    assert not model.training


def test_what_is_not_shipped_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "ADDSEGDIFF", "no-segmenter")
    monkeypatch.setattr(shipped, "DEFAULT_DETECTOR", "no-detector")
    with pytest.raises(CheckpointError, match="ships no no-segmenter"):
        shipped.addsegdiff()
    with pytest.raises(CheckpointError, match="ships no no-detector"):
        load_detector("embedded")
