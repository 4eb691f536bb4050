"""Trees of concepts against the vocabularies that they refine, a slow replica, and their laws."""

import copy
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specsegdiff.errors import ConfigError
from specsegdiff.narration.concepts import Concept, ConceptTree, face_concepts, speech_concepts
from specsegdiff.narration.phones import ARPABET_VOWELS, phone_class
from specsegdiff.narration.schema import FREQUENCIES, KINDS, PHONES, TIMES

SPEECH, FACE = speech_concepts(), face_concepts()
TREES = pytest.mark.parametrize("tree", [SPEECH, FACE], ids=["speech", "face"])
NAMES = [concept.name for concept in SPEECH.concepts]

quick = settings(max_examples=100, deadline=None, database=None)


# ------------------------------------------------------------------ what the trees hold


def test_the_top_of_the_tree_for_speech_is_the_schema():
    for axis, words in (("when", TIMES), ("band", FREQUENCIES), ("phone", PHONES)):
        assert set(SPEECH.children(SPEECH.root(axis))) == set(words)
    leaves = {
        name for name in NAMES if SPEECH.holds("artifact", name) and not SPEECH.children(name)
    }
    assert leaves == set(KINDS)
    assert SPEECH.children(SPEECH.root("kind")) == ("nothing unusual", "artifact")


def test_bands_of_fixed_frequencies_divide_their_third():
    for third, (low, high) in {"low": (0, 2667), "mid": (2667, 5333), "high": (5333, 8000)}.items():
        edges = [SPEECH.concept(name).hertz for name in SPEECH.children(third)]
        assert (edges[0][0], edges[-1][1]) == (low, high)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))


def test_labels_are_classed_as_the_phone_reader_has_them():
    vowels = set()
    for concept in SPEECH.concepts:
        for label in concept.labels:
            assert phone_class(label) == SPEECH.path(concept.name)[1]
            assert SPEECH.by_label(label) is concept
            vowels |= {label} if phone_class(label) == "vowel" else set()
    assert vowels == ARPABET_VOWELS
    assert SPEECH.by_label("sil") is None


def test_the_tree_for_faces_has_the_labels_of_face_parsers():
    said = "background skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip hair"
    labels = {*said.split(), "hat", "ear_r", "neck_l", "neck", "cloth"}
    assert {label for concept in FACE.concepts for label in concept.labels} == labels
    assert FACE.path("left eye") == ("picture", "face", "eye region", "eye", "left eye")
    assert FACE.parse("blurred area around the left eyes") == {"kind": "blur", "part": "left eye"}


@TREES
def test_every_phrase_is_read_as_its_concept(tree):
    for concept in tree.concepts:
        for phrase in (concept.name, *concept.words):
            assert tree.parse(phrase) == {concept.axis: concept.name}
            several = phrase if len(phrase) < 3 or phrase.endswith("s") else f"{phrase}s"
            assert tree.parse(f"All the {several.upper()}") == {concept.axis: concept.name}
            assert tree.read(f"Here, {phrase}.")[concept.axis] == concept.name


@TREES
def test_data_comes_back(tree):
    assert ConceptTree.from_dict(tree.to_dict()) == tree


# ------------------------------------------------------------------ laws


def slow_distance(first, second):
    """Breadth first over the edges."""
    edges = [(c.name, c.parent) for c in SPEECH.concepts if c.parent]
    reached, steps = {first}, 0
    while second not in reached:
        reached |= {b for a, b in edges if a in reached} | {a for a, b in edges if b in reached}
        steps += 1
    return steps


@given(st.data())
@quick
def test_distance_counts_the_edges_between(data):
    axis = data.draw(st.sampled_from(SPEECH.axes))
    names = st.sampled_from([c.name for c in SPEECH.concepts if c.axis == axis])
    a, b, c = (data.draw(names) for _ in range(3))
    assert SPEECH.distance(a, b) == SPEECH.distance(b, a) == slow_distance(a, b)
    assert SPEECH.distance(a, c) <= SPEECH.distance(a, b) + SPEECH.distance(b, c)
    assert (SPEECH.distance(a, b) == 0) == (a == b)
    common = SPEECH.common(a, b)
    assert SPEECH.holds(common, a)
    assert SPEECH.holds(common, b)
    assert not any(SPEECH.holds(x, a) and SPEECH.holds(x, b) for x in SPEECH.children(common))


@given(st.lists(st.sampled_from([*NAMES, "not", "murmur", "7.5", "-", "é"]), max_size=8))
@quick
def test_any_text_is_read_and_a_phrase_is_read_or_refused(words):
    text = ", ".join(words)
    said = SPEECH.read(text)
    assert tuple(said) == SPEECH.axes
    try:
        asked = SPEECH.parse(text)
    except ConfigError:
        return
    # what is asked for is what is read, and nothing contradicts
    assert asked.items() <= said.items()
    for word in words:
        if word in NAMES:
            assert SPEECH.holds(word, asked[SPEECH.concept(word).axis])


# ------------------------------------------------------------------ texts


def test_a_text_that_contradicts_itself_says_what_both_have_in_common():
    said = SPEECH.read("A stop or a nasal, low and high; over-smoothing and noise flattening.")
    assert said["phone"] == "consonant"
    assert said["band"] == "full band"
    assert said["kind"] == "loss of grain"
    assert SPEECH.read("")["when"] == "utterance"


def test_the_longest_phrase_counts():
    assert SPEECH.read("non-speech")["when"] == "non-speech"
    assert SPEECH.read("No artifact stands out")["kind"] == "nothing unusual"
    assert SPEECH.read("an artifact")["kind"] == "artifact"
    assert SPEECH.read("below the highest")["band"] == "full band"
    assert SPEECH.parse("spectral irregularities") == {"kind": "spectral irregularity"}


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("high-frequency vowals", "'vowal' .* names no concept"),
        ("not a vowel", "'not'"),
        ("low and high", "exclude each other"),
        ("vowels or consonants", "exclude each other"),
        ("the", "names no concept"),
        ("", "names no concept"),
    ],
)
def test_a_phrase_that_is_not_understood_is_refused(phrase, words):
    with pytest.raises(ConfigError, match=words):
        SPEECH.parse(phrase)


def test_unknown_names_and_other_axes_are_refused():
    for call in (SPEECH.concept, SPEECH.path, SPEECH.children):
        with pytest.raises(ConfigError, match="no concept 'hum'"):
            call("hum")
    with pytest.raises(ConfigError, match="no axis"):
        SPEECH.root("colour")
    with pytest.raises(ConfigError, match="different axes"):
        SPEECH.distance("low", "vowel")


# ------------------------------------------------------------------ bad data


def spoilt(change):
    values = copy.deepcopy(SPEECH.to_dict())
    change(values)
    return values


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("fillers"), "the fields"),
        (lambda v: v.update(format="2"), "expected format"),
        (lambda v: v.update(axes={}), "root of each axis"),
        (lambda v: v.update(name=""), "expected a name"),
        (lambda v: v["axes"]["when"].pop("name"), "a node with a name"),
        (lambda v: v["axes"]["when"].update(colour="red"), "a node with a name"),
        (lambda v: v["axes"]["when"].update(words="speech"), "list of texts"),
        (lambda v: v["axes"]["when"].update(words=["--"]), "is empty"),
        (lambda v: v["axes"]["when"].update(words=["vowels"]), "'vowel'"),
        (lambda v: v["axes"]["when"].update(name="vowel"), "stands twice"),
        (lambda v: v["axes"]["when"].update(labels=["AA"]), "label 'AA' stands twice"),
        (lambda v: v["axes"]["when"].update(hertz=[5]), "two numbers"),
        (lambda v: v["axes"]["when"].update(hertz=[5, 5]), "low < high"),
        (lambda v: v["axes"]["when"].update(children={}), "list of children"),
        (lambda v: v["axes"].update(when="speech"), "a node with a name"),
    ],
)
def test_damaged_data_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        ConceptTree.from_dict(spoilt(change))


def test_a_tree_has_one_root_an_axis_and_parents_first():
    root, leaf = Concept("any", "x", None), Concept("a", "x", "any")
    assert ConceptTree("t", (root, leaf)).path("a") == ("any", "a")
    for concepts, words in (
        ((leaf, root), "before it"),
        ((root, Concept("other", "x", None)), "second root"),
        ((root, Concept("b", "y", "any")), "on the axis 'y'"),
        ((), "holds no concept"),
    ):
        with pytest.raises(ConfigError, match=words):
            ConceptTree("t", concepts)
