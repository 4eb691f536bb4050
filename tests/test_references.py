"""Phrases that point at regions: what was written is read, and nothing else is."""

import copy
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specsegdiff.cells import Box
from specsegdiff.errors import ConfigError
from specsegdiff.narration.references import GroundedText, Span, grounded, parse, written
from specsegdiff.narration.schema import CellReport, Report, Sentence

PLACES = {
    "R15": Box(0.0, 1.0, 0.0, 2000.0),
    "7": Box(1.0, 2.0, 0.0, 2000.0),
    "box": Box(0, 2, 5, 6),
}
quick = settings(max_examples=100, deadline=None, database=None)

references = st.lists(st.sampled_from(list(PLACES)), min_size=1, max_size=3, unique=True).map(tuple)
# marks often, so that texts look like markup
texts = st.lists(st.sampled_from(["<p>", "</p>", "[R15]", "&amp;", "&", "]"]) | st.text(max_size=5))
phrases = st.builds(Span, texts.map("".join).filter(bool), references)
rows = st.lists(st.tuples(texts.map("".join), phrases), max_size=5)


def text_of(rows, tail):
    spans = [span for plain, phrase in rows for span in ([Span(plain)] if plain else []) + [phrase]]
    return GroundedText(tuple(spans + ([Span(tail)] if tail else [])), PLACES)


@given(rows, texts.map("".join))
@quick
def test_what_is_written_is_read(rows, tail):
    text = text_of(rows, tail)
    assert parse(text.markup, PLACES) == text
    twin = json.loads(json.dumps(text.to_dict()))
    assert GroundedText.from_dict(twin) == text
    assert twin["text"] == str(text)
    for said, span in zip(twin["references"], [s for s in text.spans if s.regions], strict=True):
        assert twin["text"][said["start"] : said["end"]] == span.text


PIECES = [
    "<p>",
    "</p>",
    "[R15]",
    "[7]",
    "[R9]",
    "[",
    "]",
    "<",
    ">",
    "&",
    "&amp;",
    "&#91;",
    "a",
    " ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text(max_size=30))
@example("<p>a</p>[R15][7] b &amp; c")
@quick
def test_a_text_is_refused_or_is_what_would_be_written(markup):
    try:
        text = parse(markup, PLACES)
    except ConfigError:
        return
    assert text.markup == markup
    assert text.spans == tuple(span for span in text.spans if span.text)


@pytest.mark.parametrize(
    ("markup", "words"),
    [
        ("<p>a", "begins at 0 is not closed"),
        ("b <p>a</p>[7] <p>", "begins at 14 is not closed"),
        ("a</p>[7]", "character 1 .* no phrase is open"),
        ("<p>a</p>", "has no region"),
        ("<p>a</p> [7]", "has no region"),
        ("<p>a</p><p>b</p>[7]", "has no region"),
        ("<p>a</p>[R9]", "no region 'R9'; known are R15, 7, box"),
        ("<p>a</p>[7][7]", "stands twice"),
        ("<p>a<p>b</p>[7]</p>[7]", "within the one that begins at 0"),
        ("<p>a[7]</p>[7]", "not right behind a phrase"),
        ("a [7]", "not right behind a phrase"),
        ("<p></p>[7]", "empty"),
        ("<p>a</p>[7", r"a bare '\['"),
        ("<p>a</p>[]", r"a bare '\['"),
        ("a < b", "write it as &lt;"),
        ("a & b", "write it as &amp;"),
        ("&quot;", "write it as &amp;"),
        ("a]", "write it as &#93;"),
        ("<P>a</P>[7]", "a bare '<'"),
    ],
)
def test_unbalanced_unknown_and_nested_marks_are_refused(markup, words):
    with pytest.raises(ConfigError, match=words):
        parse(markup, PLACES)


def test_the_markup_of_a_text():
    text = parse("<p>smeared harmonics</p>[R15] in <p>both</p>[R15][7].", PLACES)
    assert str(text) == "smeared harmonics in both."
    assert text.spans[2] == Span("both", ("R15", "7"))
    assert text.of("7") == "both."
    assert text.of("R15") == "smeared harmonics in both."
    assert text.of("box") == ""
    with pytest.raises(ConfigError, match="no region"):
        text.of("R1")


def test_impossible_texts_are_refused():
    for spans, words in (
        ((Span("a"), Span("b")), "join the two"),
        ((Span("a", ("R9",)),), "no region"),
    ):
        with pytest.raises(ConfigError, match=words):
            GroundedText(spans, PLACES)
    with pytest.raises(ConfigError, match="name is of letters"):
        GroundedText((), {"a]": PLACES["7"]})
    with pytest.raises(ConfigError, match="stretch of text"):
        Span("")
    with pytest.raises(ConfigError, match="twice"):
        Span("a", ("7", "7"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(format="2"), "expected format"),
        (lambda v: v.pop("places"), "missing"),
        (lambda v: v["references"][0].update(end=99), "within the 7 characters"),
        (lambda v: v["references"][0].update(start=3), "within the 7 characters"),
        (lambda v: v["references"][0].update(regions=[]), "with regions"),
        (lambda v: v["references"].reverse(), "in order"),
        (lambda v: v["references"][1].update(start=2), "in order"),
        (lambda v: v["references"][0].update(regions=["R9"]), "no region"),
        (lambda v: v["places"]["7"].update(t1=-1.0), "a box with"),
        (lambda v: v.update(text=7), "expected <class 'str'>"),
    ],
)
def test_a_damaged_twin_is_refused(change, words):
    twin = parse("<p>abc</p>[7] <p>def</p>[R15]", PLACES).to_dict()
    change(values := copy.deepcopy(twin))
    with pytest.raises(ConfigError, match=words):
        GroundedText.from_dict(values)
    with pytest.raises(ConfigError):
        GroundedText.from_dict([twin])


def test_a_report_points_at_its_cells():
    cell = CellReport("7", "speech", "low", "vowel", None, "x", {}, box=PLACES["7"])
    said = (Sentence("Cell 7 hums.", "7"), Sentence("It does [so].", "7"))
    text = grounded(Report((cell,), said, "s", {}))
    assert text.markup == "<p>Cell 7 hums.</p>[7] <p>It does &#91;so&#93;.</p>[7]"
    assert text.of("7") == "Cell 7 hums. It does [so]."
    bare = CellReport("7", "speech", "low", "vowel", None, "x", {})
    with pytest.raises(ConfigError, match="no box"):
        grounded(Report((bare,), said, "s", {}))


def test_sentences_are_joined_by_blanks():
    spans = written([("A", ("7",), " hums."), ("B", ("box",), ""), ("C", (), "!")])
    assert GroundedText(spans, PLACES).markup == "<p>A</p>[7] hums. <p>B</p>[box] C!"
