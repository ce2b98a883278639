"Readers of every format: the cases that went wrong, further inputs of their kinds, and a property for each kind."
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from odd_documents import DOCUMENT, RELATION, W, cell, para, pdf, run, table, word

from distillery.pairs.documents import read_document, read_documents
from distillery.reading.files import HTML, MARKDOWN, PLAIN, sniff
from distillery.reading.grid import Cell, fill_spans
from distillery.reading.layout import Line, page_text
from distillery.reading.plain import Unreadable, clean, tidy

CASES = Path(__file__).parents[2] / "shared" / "cases"
quick = settings(max_examples=25)
words = st.lists(st.sampled_from("drum lid feeder cleaned opened daily bar press roller hall oil Monday seven".split()), min_size=2,
                 max_size=9)
phrase = words.map(" ".join)
plain_sentence = phrase.map(lambda s: s.capitalize() + ".")


def text_of(name: str, data: str | bytes) -> str:
    return read_document(data.encode() if isinstance(data, str) else data, name).text


def case(start: str, name: str, data: bytes) -> bytes:
    "A file of the shared cases, or the same input as written here."
    found = sorted(CASES.glob(f"{start}_*/{name}"))
    return found[0].read_bytes() if found else data


# --- the name decides, unless the bytes plainly contradict it


def test_markdown_that_shows_html_is_markdown():
    page = case("01", "page.md",
                b"# Page layout\n\nThis:\n\n```html\n<html>\n<body>\n```\n\n## Margins\n\nThe left margin of a page is 12 mm.\n")
    document = read_document(page, "page.md")
    assert (document.title, document.mime) == ("Page layout", MARKDOWN)
    assert re.findall(r"^#+ (.+)", document.text, re.M) == ["Page layout", "Margins"]
    assert "The left margin of a page is 12 mm." in document.text


@pytest.mark.parametrize(("name", "data", "mime"), [
    ("a.txt", b"A PDF begins with %PDF-1.7 and ends with %%EOF.", PLAIN), ("a.txt", b"%PDF-1.4 stands in line 1.", PLAIN),
    ("a.md", b"Write `<!DOCTYPE html>` first, then <body>.", MARKDOWN), ("a.txt", b"The <body> of the pump", PLAIN),
    ("a.html", b"<p>Only a piece", HTML), ("a.md", b"<html> and <body> are tags.", MARKDOWN),
    ("a.txt", b"<!doctype html> opens it.", PLAIN),
    ("a.md", b"<!doctype html>\n<html><p>A page", HTML),
    ("a.txt", b"\n<!-- saved -->\n<html><p>A saved page", HTML), ("a.pdf", b"<!doctype html><p>A page", HTML),
    ("a", b"# Notes\n\nClean it.", MARKDOWN)])
def test_what_a_file_is(name, data, mime): assert sniff(data, name) == mime


@quick
@given(phrase, st.sampled_from(["<html>", "<!doctype html>", "%PDF-1.7", "{\\rtf1", "PK\x03\x04"]), phrase, st.sampled_from([".md",
    ".txt"]))
def test_what_a_text_mentions_does_not_change_what_it_is(before, mark, after, suffix):
    assert sniff(f"{before} {mark} {after}".encode(), f"a{suffix}") == {".md": MARKDOWN, ".txt": PLAIN}[suffix]


@pytest.mark.parametrize(("said", "data"), [("utf-16", "5 €".encode()), ("iso-8859-1", b"5 \x80"), ("windows-1252", b"5 \x80"),
                                            ("none", "5 €".encode())])
def test_what_a_page_says_of_its_encoding(said, data):
    assert text_of("a.html", b"<html><meta charset='" + said.encode() + b"'><p>" + data) == "5 €"


def test_empty_elements_of_xml_hide_nothing():
    page = "<?xml version='1.0'?><html><body><script src='x'/><p>One.</p><div/><p>Two.</p></body></html>"
    assert text_of("a.xhtml", page) == "One.\n\nTwo."


# --- code is code


def test_comments_in_code_are_no_headings():
    quick_page = case("02", "quick.md", b"Run these.\n\n```bash\n# install it\napt install x\n```\n")
    assert read_document(quick_page, "quick.md").title == "quick"
    setup = case("02", "setup.md", b"# Feeder\n\nRun this.\n\n```bash\n# the driver\napt install x\n```\n\nIt listens on 6310.\n")
    assert re.findall(r"^#+ (.+)", text_of("setup.md", setup), re.M) == ["Feeder"]


@pytest.mark.parametrize(("name", "data"), [
    ("a.md", "~~~\n# one\n~~~"), ("a.md", "Text\n\n    # one\n    make"), ("a.md", "> ```\n> # one\n> ```"),
    ("a.html", "<p>Run<pre># one\nmake</pre>"),
    ("a.html", "<pre><code># one</code></pre>"), ("a.md", "\\# one"), ("a.txt", "Run this\n# one\nmake"), ("a.docx", word(para("# one"))),
    ("a.pdf", pdf([(72, 700, 12, "# one of them")]))])
def test_a_hash_that_is_no_heading(name, data): assert not re.search(r"^#{1,6} ", text_of(name, data), re.M)


@quick
@given(st.lists(st.sampled_from(["# a", "## b", "make", "  # c", "- d", "{% e %}", "\\page x y", "<b>", "--- x"]), min_size=1, max_size=8),
       st.sampled_from(["```", "~~~"]))
def test_a_fence_keeps_its_lines(lines, fence):
    read = text_of("a.md", "# Top\n\nRun:\n\n" + "\n".join([fence, *lines, fence]) + "\n\nDone.")
    assert re.findall(r"^#+ (.+)", read, re.M) == ["Top"]
    assert [line.strip() for line in read.split("\n\n")[2].split("\n")] == [line.strip() for line in lines]


# --- superscripts


def test_superscripts_stay_apart():
    page = case("03", "b.html", b"<p>It lasts 10<sup>6</sup> cycles on 25 cm<sup>2</sup>, leaks 10<sup>-3</sup>.")
    for wrong in ("106", "cm2", "10-3"): assert wrong not in text_of("b.html", page)
    assert "10^6" in text_of("b.docx", case("03", "b.docx", word(para("It lasts 10", run("6", True), " cycles."))))
    assert "10^6" in text_of("b.md", case("03", "b.md", b"It lasts 10<sup>6</sup> cycles."))


RAISED = '<w:r><w:rPr><w:position w:val="6"/><w:sz w:val="14"/></w:rPr><w:t>6</w:t></w:r>'


@pytest.mark.parametrize(("name", "data", "right"), [
    ("a.html", "<p>2<sup><b>n+1</b></sup> on the 1<sup>st</sup>", "2^(n+1) on the 1st"),
    ("a.html", "<p>H<sub>2</sub>O<sup><a href='#n1'>[1]</a></sup> boils", "H2O boils"),
    ("a.docx", word(para("25 m", run("2", True), " of film")), "25 m^2 of film"),
    ("a.md", "x<sup>2</sup>[^1] is\n\n[^1]: a square", "x^2 is"),
    ("a.html", "<p>It is <math><msup><mn>10</mn><mn>6</mn></msup></math> bar", "It is 10^6 bar"),
    ("a.html", "<p>10<span style='vertical-align: super'>4</span> bar", "10^4 bar"),
    ("a.html", "<p>101<sub>2</sub> and 2<sup>10</sup>24 and log<sub>10</sub>100", "101_2 and 2^10 24 and log10 100"),
    ("a.docx", word(para("It is 10", RAISED, " bar")), "It is 10^6 bar"),
    ("a.html", "<p>1<sup>1</sup>&frasl;<sub>2</sub> bar, <math><mfrac><mn>1</mn><mn>3</mn></mfrac></math> l", "1 1/2 bar, 1/3 l"),
    ("a.html", "<math><msubsup><mi>b</mi><mn>1</mn><mn>2</mn></msubsup></math> m", "b1^2 m"),
    ("a.html", "<math><msup>\n <mi>x</mi>\n <mn>2</mn>\n</msup></math> m", "x^2 m"),
    ("a.html", "<p><ruby>漢字<rt>かんじ</rt></ruby>です", "漢字です"),
    ("a.pdf", pdf([(72, 700, 12, "10"), (85.4, 705, 7, "6"), (92, 700, 12, "cycles")]), "10^6 cycles")])
def test_further_superscripts(name, data, right): assert right in text_of(name, data)


@quick
@given(st.integers(2, 99), st.integers(-99, 99).filter(bool))
def test_an_exponent_is_never_a_digit(base, power):
    for name, data in (("a.md", f"It is {base}<sup>{power}</sup> now."), ("a.docx", word(para(f"It is {base}", run(str(power), True),
        " now.")))):
        assert text_of(name, data) == f"It is {base}^{power} now."


# --- what was changed


def test_tracked_changes():
    page = word(para("The warranty lasts ", f'<w:del w:id="1">{run("12").replace("w:t", "w:delText")}</w:del>',
                     f'<w:ins w:id="2">{run("24")}</w:ins>', " months."))
    assert "The warranty lasts 24 months" in text_of("w.docx", case("04", "warranty.docx", page))


@pytest.mark.parametrize(("mark", "kept"), [("strike", False), ("dstrike", False), ('dstrike w:val="0"', True)])
def test_what_is_struck_out_in_word_no_longer_holds(mark, kept):
    page = word(para("It lasts ", f"<w:r><w:rPr><w:{mark}/></w:rPr><w:t>12 or </w:t></w:r>", "24 months."))
    assert text_of("a.docx", page) == ("It lasts 12 or 24 months." if kept else "It lasts 24 months.")


DELETED = '<w:del w:id="1"><w:r><w:delText>{}</w:delText></w:r></w:del>'
INSERTED = '<w:ins w:id="2"><w:r><w:t xml:space="preserve">{}</w:t></w:r></w:ins>'


@pytest.mark.parametrize(("name", "data", "right"), [
    ("a.docx", word(para("Use ", f'<w:moveFrom w:id="3">{run("old ")}</w:moveFrom>',
                         f'<w:moveTo w:id="4">{run("new ")}</w:moveTo>', "oil.")),
     "Use new oil."),
    ("a.docx", word(table(["Part", "bar"], ["Lid", cell(para(DELETED.format("3"), INSERTED.format("4")))])), "Lid | 4"),
    ("a.html", "<p>It is <del>12</del><ins>24</ins> months and <s>1</s>2 bar.", "It is 24 months and 2 bar."),
    ("a.md", "It is ~~12~~ 24 months.", "It is 24 months.")])
def test_further_changes(name, data, right): assert right in text_of(name, data)


@quick
@given(st.lists(st.tuples(st.sampled_from(["kept", "in", "out"]), phrase), min_size=1, max_size=6))
def test_inserted_text_stays_and_deleted_text_goes(parts):
    made = {"kept": run, "in": INSERTED.format, "out": DELETED.format}
    read = text_of("a.docx", word(para("Start ", *(made[kind](f"{said} ") for kind, said in parts), "end.")))
    assert read == " ".join(["Start", *(said for kind, said in parts if kind != "out"), "end."])


# --- tables


def test_merged_and_nested_tables():
    page = word(table([cell(para("Feeder models"), look='<w:gridSpan w:val="3"/>')], ["F1", "F2", "F3"]) + table([cell(para("outer"),
        table(["nested A", "nested B"]), para()), "right"]))
    read = text_of("t.docx", case("06", "t.docx", page))
    assert read.count("Feeder models") == 1
    assert re.search("nested A.*nested B", read, re.S)
    spans = case("46", "t.html", b"<table><tr><th>Part<th>mm<th>colour<tr><td rowspan=2>B<td>3<td>green<tr><td>4<td>red</table>")
    assert "B | 4 | red" in text_of("t.html", spans)


MERGED = ('<w:vMerge w:val="restart"/>', "<w:vMerge/>")


@pytest.mark.parametrize(("name", "data", "right"), [
    ("a.docx", word(table(["Part", "bar"], [cell(para("Lid"), look=MERGED[0]), "1"], [cell(para(), look=MERGED[1]), "2"])),
     "Lid | 1\nLid | 2"),
    ("a.docx", word("<w:tbl><w:sdt><w:sdtContent><w:tr>" + cell(para("Lid")) + cell(para("3")) + "</w:tr></w:sdtContent></w:sdt></w:tbl>"),
     "Lid | 3"),
    ("a.docx", word(table(["a", "b"], ["c", "d"]).replace("<w:tr>", '<w:tr><w:trPr><w:gridBefore w:val="1"/></w:trPr>')),
     "| a | b\n| c | d"),
    ("a.html", "<table><tr><td>A<td colspan=2>wide<td>z<tr><td>1<td>2<td>3<td>4</table>", "A | wide | | z\n1 | 2 | 3 | 4"),
    ("a.html", "<table><tr><th>a<th>b<tr><td rowspan=0>x<td>1<tr><td>2<tr><td>3</table>", "x | 1\nx | 2\nx | 3"),
    ("a.html", "<table><tr><td><p>Only</p><p>layout</p></td></tr></table>", "Only\n\nlayout"),
    ("a.html", "<table><tr><th>a<td>out<table><tr><td>in 1<td>in 2</table></table>", "a | out in 1, in 2"),
    ("a.docx", word(table(["a", "b"], ["c", cell(para("wide"), look='<w:gridSpan w:val="100000"/>')])), "a | b\nc | wide")])
def test_further_tables(name, data, right): assert right in text_of(name, data)


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_spans_fill_the_grid_as_drawn(height, width, rng):
    "Rectangles are drawn on a grid; written as cells with spans and laid out again, every column is where it was drawn."
    owner: dict[tuple[int, int], tuple[int, int]] = {}
    rows: list[list[Cell]] = []
    for y in range(height):
        rows.append([])
        for x in range(width):
            if (y, x) in owner: continue
            wide, high = 1, rng.randint(1, height - y)
            while x + wide < width and (y, x + wide) not in owner and rng.random() < 0.4: wide += 1
            owner |= {(y + b, x + a): (y, x) for a in range(wide) for b in range(high)}
            rows[-1].append(Cell(f"{y}.{x}", high, wide))
    expected = [[f"{owner[y, x][0]}.{owner[y, x][1]}" if owner[y, x][1] == x else "" for x in range(width)] for y in range(height)]
    assert fill_spans(rows) == expected


# --- PDF


def locked(password: str) -> bytes:
    from pypdf import PdfReader, PdfWriter
    writer, out = PdfWriter(PdfReader(io.BytesIO(pdf([(72, 700, 12, "The drum is cleaned every 14 days.")])))), io.BytesIO()
    writer.encrypt(password, "owner", algorithm="RC4-128")
    writer.write(out)
    return out.getvalue()


def test_an_empty_password_opens():
    assert "cleaned every 14 days" in text_of("a.pdf", locked(""))
    for name in ("enc-AES-128.pdf", "enc-AES-256.pdf", "enc-RC4-128.pdf"):
        if found := case("07", name, b""): assert "every 14 days with lukewarm" in text_of(name, found)
    with pytest.raises(Unreadable, match="password"): read_document(locked("secret"), "a.pdf")


def test_half_a_surrogate_is_replaced():
    if found := sorted(CASES.glob("08_*/docs/sur.pdf")): assert "The value \ufffd is 12 bar" in text_of("sur.pdf", found[0].read_bytes())
    assert "\ufffd is 3" in text_of("a.html", "<p>&#xD835; is 3")
    assert "\ufffd is 3" in text_of("a.md", "&#xD835; is 3")
    with pytest.raises(Unreadable, match="not UTF-8"): read_document(b"A \xed\xa0\xb5 is 3", "a.txt")


@given(st.text(st.characters(codec=None), max_size=40) | st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zl", "Zs"]), max_size=40))
def test_cleaned_text_can_be_kept(text):
    kept = clean(text)
    assert kept.encode().decode() == kept == clean(kept)
    assert not re.search("[\ud800-\udfff\x00-\x08\ue000-\ue003\xad]", kept)


HEADED = [[(72, 770, 12, "Raven press manual - page {n}"), (72, 700, 12, "The drum must be cleaned"), (72, 686, 12,
    "every 14 days with luke-")],
          [(72, 770, 12, "Raven press manual - page {n}"), (72, 700, 12, "warm water and a soft brush. Never use"), (72, 686, 12,
              "solvent on it.")]]


def headed(pages: list) -> bytes: return pdf(*([(x, y, s, t.format(n=n)) for x, y, s, t in page] for n, page in enumerate(pages, 1)))


def test_a_running_header_is_not_in_a_sentence():
    read = text_of("m.pdf", case("10", "m.pdf", headed(HEADED)))
    assert "The drum must be cleaned every 14 days with lukewarm water and a soft brush." in " ".join(read.split())
    assert "Raven press manual" not in read
    assert "every 14 days with lukewarm water and a soft brush. Never use solvent" in text_of("a.pdf", headed(HEADED))


@pytest.mark.parametrize(("pages", "gone", "right"), [
    ([[(72, 700, 12, f"Rule {w} holds for the"), (72, 686, 12, "whole hall."), (300, 30, 9, f"{n}")] for n, w in enumerate(["one", "two",
        "three"], 1)], "1", "Rule one holds for the whole hall."),
    ([[(72, 760, 9, side), (72, 700, 12, f"The {w} is cleaned"), (72, 686, 12, "daily.")] for w, side in zip(["drum", "lid", "feeder",
        "roller"], ["Left", "Right"] * 2, strict=True)],
     "Right", "The lid is cleaned daily."),
    ([[(72, 120, 12, "The drum is cleaned on Mondays and"), (72, 60, 8, "1 By hand.")], [(72, 700, 12, "on Fridays by the whole crew.")]],
     "1", "The drum is cleaned on Mondays and on Fridays by the whole crew."),
    ([[(72, 720, 20, "Drum"), (72, 690, 12, "It is cleaned on Mondays by hand."), (72, 676, 12, "It is dried.")]], "@",
     "# Drum\n\nIt is cleaned on Mondays by hand.")])
def test_further_pages(pages, gone, right):
    read = text_of("a.pdf", pdf(*pages))
    assert right in read
    assert gone not in read.split("\n")


@pytest.mark.parametrize(("lines", "right"), [
    (["The drum must be clea-", "ned every 14 days."], "The drum must be cleaned every 14 days."),
    (["It is X-", "ray tested at 5-", "10 bar."], "It is X-ray tested at 5-10 bar."),
    (["The self-", "cleaning lid is red."], "The self-cleaning lid is red.")])
def test_words_that_a_line_splits(lines, right):
    assert text_of("a.pdf", pdf([(72, 700 - 14 * i, 12, line) for i, line in enumerate(lines)])) == right
    assert text_of("a.txt", "\n".join(lines)) == right


@quick
@given(st.lists(plain_sentence, min_size=4, max_size=14, unique=True), st.integers(18, 60), st.integers(3, 8))
def test_sentences_survive_lines_and_pages(sentences, width, height):
    rows, line = [], ""
    for word_ in " ".join(sentences).split():
        if len(line) + len(word_) + 1 > width: rows.append(line); line = ""
        line = f"{line} {word_}".strip()
    rows.append(line)
    lines = []
    for page in range(0, len(rows), height):
        lines.append(Line(f"Manual of the press, page {page}", page, 72, 250, 770, 11))
        lines += [Line(t, page, 72, 72 + 6 * len(t), 740 - 14 * i, 11) for i, t in enumerate(rows[page : page + height])]
    read = tidy(page_text(lines))
    if len({row.page for row in lines}) > 1: assert "Manual" not in read
    whole = " ".join(read.split())
    assert all(s in whole for s in sentences)
    assert sum(read.count(f"{s}\n") + read.endswith(s) + read.count(f"{s} ") for s in sentences) >= len(sentences)


# --- front matter, comments, furniture


def test_front_matter():
    colon = case("12", "colon.md", b"---\ntitle: Drum: cleaning it\nowner: team\n---\n\nClean the drum.\n")
    toml = case("12", "toml.md", b'+++\ntitle = "Drum"\nweight = 3\n+++\n\nClean the drum.\n')
    assert [(d.title, d.text.startswith("Clean the drum")) for d in (read_document(colon, "c.md"), read_document(toml,
        "t.md"))] == [("Drum: cleaning it", True), ("Drum", True)]


@pytest.mark.parametrize(("front", "title"), [
    ("---\ntitle: 'It''s: so'\n---\n", "It's: so"), ("---\ndate: 0000-00-00\ntitle: Lid\n---\n", "Lid"), ("---\ntitle: [Lid]\n---\n",
        "ink room"),
    ("---\na: &a [x, x]\nb: &b [*a, *a]\ntitle: *b\n---\n", "ink room"), ("+++\ntitle = Lid\n+++\n", "Lid"), ("---\n---\n", "ink room"),
    ("---\ntitle: >\n  A long\n  lid\n---\n", "A long lid"),
    (';;;\n{"title": "Lid"}\n;;;\n', "Lid"), ('{\n  "title": "Lid"\n}\n', "Lid"), ("---toml\ntitle = 'Lid'\n---\n", "Lid"),
    ("\n---\nTitle:\tLid\n---\n", "Lid"), ("---\ntitle: Lid\nowner: team\n\n", "Lid"), ("---\nlast change: 1: 2\ntitle: Lid\n---\n", "Lid"),
    ("---\r\ntitle: Lid\r\n---\r\n", "Lid"), ("---\ntags:\n- a\n- b: c: d\ntitle: Lid\n---\n", "Lid")])
def test_further_front_matter(front, title):
    document = read_document(f"{front}\nClean it.".encode(), "ink-room.md")
    assert (document.title, document.text) == (title, "Clean it.")


def test_a_rule_is_no_front_matter():
    assert "The lid is closed at night." in text_of("a.md", "---\nThe lid is closed at night.\n---\nClean it.")


@quick
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\"'\\`[]{}>|*&!%#,?@-+="), min_size=1,
               max_size=20), phrase)
def test_any_unquoted_title(start, rest):
    document = read_document(f"---\ntitle: {start}: {rest}\nowner: team\n---\nClean it.".encode(), "a.md")
    assert document.text == "Clean it."
    assert document.title == " ".join(clean(f"{start}: {rest}").split()) or document.title == f"{start}: {rest}"


def test_hidden_comments():
    page = case("13", "c.md",
                b'# Drum\n\n<!-- internal: <Badge type="warn"/> ask -->\n\nClean the drum every 14 days.\n\n<!--\nOld: 30 days.\n-->\n')
    assert text_of("c.md", page) == "# Drum\n\nClean the drum every 14 days."


@pytest.mark.parametrize("comment", ["<!-- a -->", "<!--\n\nOld: <b>30</b>\n\n# x\n-->", "<!-- <script>x()</script> -->", "<!---->",
                                     "<!-- ```\n# y\n``` -->", "<!-- a --><!-- b -->"])
def test_further_comments(comment):
    assert text_of("a.md", f"One.\n\n{comment}\n\nTwo.") == "One.\n\nTwo."
    assert text_of("a.md", f"One {comment if chr(10) not in comment else ''} two.") == "One two."
    assert text_of("a.html", f"<p>One.{comment}<p>Two.") == "One.\n\nTwo."
    assert comment.split("\n")[0] in text_of("a.md", f"Shown:\n\n~~~~\n{comment}\n~~~~")


@quick
@given(st.text("ab<>!/\"'=\n #*`-", max_size=40).filter(lambda s: "--" not in s and not s.startswith((">", "->")) and not s.endswith("-")))
def test_no_comment_is_text(inside):
    assert text_of("a.md", f"One.\n\n<!--{inside}-->\n\nTwo.") == "One.\n\nTwo."


def test_page_furniture():
    made = (b"<body><header>Acme <form><button>Search</button></form></header><main><h1>Drum</h1><p>It is cleaned.</p></main>"
            b"<aside>Related: rollers</aside><footer>Leeds. Cookies.</footer>")
    read = text_of("drum.html", case("15", "drum.html", made))
    assert read.startswith("# Drum\n\n")
    assert not re.search("Leeds|ookies|rollers|Search|Acme", read)


@pytest.mark.parametrize("furniture", [
    "<div class='cookie-banner'><p>We use cookies.</p></div>", "<ul id='main-nav'><li>Home<li>Shop</ul>",
    "<div role='navigation'>Home</div>", "<div id=footer>Leeds</div>",
    "<div class='breadcrumbs'>Home / Press</div>", "<p hidden>secret</p>", "<div style='display: none'>secret</div>",
    "<dialog open>Accept all?</dialog>", "<nav>Home</nav>",
    "<aside>Related</aside>", "<footer><p>Acme</p></footer>", "<div class='share-buttons'>Tweet</div>",
    "<script>x()</script><style>p{}</style><noscript>Enable</noscript>"])
def test_further_furniture(furniture):
    body = "<h1>Drum</h1><p>The drum of the press is cleaned every 14 days by the operator of the day.</p>"
    alone = text_of("a.html", f"<body>{body}")
    for page in (f"<body>{furniture}{body}", f"<body>{body}{furniture}",
                 f"<body><div class=content>{body}</div>{furniture}"): assert text_of("a.html", page) == alone


@pytest.mark.parametrize("furniture", [
    "<div id='onetrust-banner-sdk'>We use cookies in Leeds.</div>", "<div class='CookieConsent'>Leeds</div>",
    "<p class=crumbs>Home &gt; Leeds</p>",
    "<ul><li><a href=1>Leeds</a><li><a href=2>Shop</a><li><a href=3>Jobs</a></ul>", "<a class='skip-link' href='#x'>Leeds</a>",
    "<div><a href=1>Leeds</a> | <a href=2>Shop</a> | <a href=3>Jobs</a></div>", "<p style='visibility: hidden'>Leeds</p>",
    "<div class='see-also'><ul><li><a href=a>Leeds</a></ul></div>", "<span class=sr-only>Leeds</span>"])
def test_furniture_of_other_sites(furniture):
    body = "<h1>Drum</h1><p>The drum of the press is cleaned every 14 days by the operator of the line.</p><p>The lid weighs 3 kg.</p>"
    right = text_of("a.html", body)
    assert right.startswith("# Drum\n\nThe drum")
    for page in (furniture + body, body + furniture, f"{body}{furniture}<div>© 2024 Leeds</div>"): assert text_of("a.html", page) == right


@pytest.mark.parametrize(("part", "right"), [
    ("<section id='navigation'><h2>Navigation</h2><p>Press it.</p></section>", "## Navigation\n\nPress it."),
    ("<div class='menu-entry'><p>The menu key of the press opens the settings for five seconds.</p></div>", "The menu key of the press"),
    ("<p>Open <span class='menu'>File</span> first.</p>", "Open File first."),
    ("<ul><li><a href=1>Drum</a>, 3 kg<li><a href=2>Lid</a>, 4 kg<li><a href=3>Arm</a>, 5 kg</ul>", "- Drum, 3 kg"),
    ("<a href=1>Leeds</a><a href=2>York</a>", "Leeds York"), ("<my-card>One</my-card><my-card>Two</my-card>", "One Two"),
    ("<span style='display:block'>One</span><span style='display:block'>Two</span>", "One\n\nTwo")])
def test_a_name_alone_makes_no_furniture(part, right):
    assert right in text_of("a.html", f"<h1>Press</h1><p>{'The press weighs 400 kg with its drum and its lid. ' * 4}</p>{part}<p>End.</p>")


def test_what_is_no_furniture():
    kept = ("<article><header><h1>Drum</h1></header><p>Clean it.</p><aside class='warning'>Never with solvent.</aside>"
            "<footer>Seen by the foreman.</footer></article>")
    assert text_of("a.html", f"<body>{kept}") == "# Drum\n\nClean it.\n\nNever with solvent.\n\nSeen by the foreman."
    ships = "<body class='has-sidebar menu'><div id='navigation-of-ships'><p>The ship turns at the buoy.</p></div>"
    assert text_of("a.html", ships) == "The ship turns at the buoy."
    assert "turns" in text_of("a.html", "<body><footer><p>The ship turns at the buoy.</p></footer>")


@quick
@given(st.lists(plain_sentence, min_size=1, max_size=6), st.sampled_from(["div", "p", "li", "td", "dt", "span></span><div"]))
def test_words_of_two_elements_are_two_words(sentences, tag):
    page = "<body>" + ("<table><tr>" if tag == "td" else "") + "".join(f"<{tag}>{s}</{tag.split('<')[-1]}>" for s in sentences)
    assert re.findall(r"\w+", text_of("a.html", page)) == re.findall(r"\w+", " ".join(sentences))


# --- Word: what else carries meaning


def test_equations_footnotes_and_text_boxes():
    r = lambda t: f"<m:r><m:t>{t}</m:t></m:r>"
    ratio = f"<m:f><m:num>{r('a-b')}</m:num><m:den>{r('c')}</m:den></m:f>"
    power = f"<m:oMath><m:sSup><m:e>{ratio}</m:e><m:sup>{r('2')}</m:sup></m:sSup></m:oMath>"
    assert text_of("a.docx", word(f"<w:p>{run('It is')}{power}</w:p>")) == "It is ((a-b)/c)^2"
    mc = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    box = f"<w:txbxContent>{para('Keep dry.')}</w:txbxContent>"
    box = f'<mc:AlternateContent {mc}><mc:Choice Requires="wps">{box}</mc:Choice></mc:AlternateContent>'
    assert "Keep dry." in text_of("a.docx", word(f"<w:p><w:r>{box}</w:r></w:p>" + para("End.")))
    hidden = "<w:r><w:rPr><w:vanish/></w:rPr><w:t>secret</w:t></w:r>"
    assert text_of("a.docx", word(para("Open ", hidden, "it."))) == "Open it."
    assert text_of("a.docx", word(f"<w:sdt><w:sdtContent>{para('In a control.')}</w:sdtContent></w:sdt>")) == "In a control."


def styled(body: str, styles: str) -> bytes:
    "A Word file with styles."
    import zipfile
    old, out = zipfile.ZipFile(io.BytesIO(word(body))), io.BytesIO()
    kind, w = DOCUMENT.replace("document.main", "styles"), W
    with zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            said = f'<Override PartName="/word/styles.xml" ContentType="{kind}"/></Types>'
            new.writestr(name, old.read(name).replace(b"</Types>", said.encode()))
        new.writestr("word/styles.xml", f'<w:styles xmlns:w="{w}">{styles}</w:styles>')
        relation = RELATION.replace("/officeDocument", "/styles").replace(".org/styles", ".org/officeDocument")
        new.writestr("word/_rels/document.xml.rels", '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
                     f'<Relationship Id="s" Type="{relation}" Target="styles.xml"/></Relationships>')
    return out.getvalue()


def test_looks_that_mean_something_in_word():
    look = '<w:style w:type="paragraph" w:styleId="H1"><w:name w:val="heading 1"/></w:style><w:style w:type="paragraph" w:styleId="Mine">' \
           '<w:name w:val="My head"/><w:basedOn w:val="H1"/></w:style>' \
           '<w:style w:type="character" w:styleId="Up"><w:name w:val="Up"/><w:rPr><w:vertAlign w:val="superscript"/></w:rPr></w:style>'
    para_of = lambda kind, text: f"<w:p><w:pPr>{kind}</w:pPr>{run(text)}</w:p>"
    power = '<w:r><w:rPr><w:rStyle w:val="Up"/></w:rPr><w:t>6</w:t></w:r>'
    heads = para_of('<w:pStyle w:val="Mine"/>', "Drum") + para_of('<w:outlineLvl w:val="1"/>', "Lid")
    assert text_of("a.docx", styled(heads + para("It is 10", power, " bar."), look)) == "# Drum\n\n## Lid\n\nIt is 10^6 bar."
    unfilled = f'<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>{run("Click here")}</w:sdtContent></w:sdt>'
    assert text_of("a.docx", word(para(unfilled, "The lid ", f"<w:bdo>{run('is ')}</w:bdo>", "red."))) == "The lid is red."
    box = f'<w:r><w:drawing><w:txbxContent>{para("In a box.")}</w:txbxContent></w:drawing></w:r>'
    assert "In a box." in text_of("a.docx", word(para(box, "After.")))


# --- every real file


@pytest.mark.skipif(not (CASES.parent / "data" / "documents").is_dir(), reason="../shared/data is not here")
def test_real_files_are_read_or_skipped_with_a_true_reason():
    corpus = read_documents(CASES.parent / "data" / "documents")
    assert len(corpus.documents) >= 39
    assert {s.path: s.reason for s in corpus.skipped} == {"pdf/pdflatex-outline.pdf": "the same text as pdf/mistitled_outlines_example.pdf"}
    assert not any(re.search(r"^\W*\|\W*$|[ﬀ-ﬆ\ud800-\udfff]", d.text, re.M) for d in corpus.documents)


@pytest.mark.skipif(not (CASES.parent / "data" / "documents").is_dir(), reason="../shared/data is not here")
def test_what_a_person_counted_is_found_whole():
    import importlib.util
    spec = importlib.util.spec_from_file_location("counted", Path(__file__).parents[1] / "benchmarks" / "documents.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    whole = found = noise = 0
    for name, counted in bench.COUNTED.items():
        if name.startswith("audio_docs"): continue  # in an archive; the benchmark reads them too
        score = bench.score(read_document((bench.SHARED / "documents" / name).read_bytes(), name).text, counted)
        whole += sum(len(set(counted[kind])) for kind in bench.KINDS)
        found, noise = found + sum(score[kind] for kind in bench.KINDS), noise + score["noise"]
    assert found >= 0.99 * whole
    assert noise <= 6
