"""Documents and chunks: files that break, formats, and properties of the cuts."""
import io
import os
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.errors import DistilleryError
from distillery.core.records import Document
from distillery.core.sentences import split_sentences
from distillery.pairs.chunk import chunk_documents, count_tokens, passages, sections
from distillery.pairs.documents import make_id, read_document, read_documents
from distillery.reading.html import html_to_text
from distillery.reading.markdown import is_markup, markdown_to_text
from distillery.reading.pdf import pdf_to_text
from distillery.reading.plain import Unreadable
from distillery.reading.word import docx_to_text

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pdf_with(content: bytes, picture: bool = False) -> bytes:
    "A one-page PDF written by hand: `content` is the page's drawing program."
    image = b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 "
    image += b"/Length 1 >>\nstream\n\x00\nendstream"
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    resources = b"/XObject << /Im0 5 0 R >>" if picture else b"/Font << /F1 5 0 R >>"
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
               b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 400] /Contents 4 0 R /Resources << " + resources + b" >> >>",
               b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content), image if picture else font]
    out, places = b"%PDF-1.4\n", []
    for i, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (i, body)
    table = b"".join(b"%010d 00000 n \n" % p for p in places)
    return out + b"xref\n0 6\n0000000000 65535 f \n%strailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (table, len(out))


TEXT_PDF = pdf_with(b"BT /F1 12 Tf 40 300 Td (The Raven 74 stands in Hall 3.) Tj ET")
SCAN_PDF = pdf_with(b"q 300 0 0 300 0 0 cm /Im0 Do Q", picture=True)


def test_pdf_with_text_and_without():
    assert pdf_to_text(TEXT_PDF) == "The Raven 74 stands in Hall 3."
    with pytest.raises(Unreadable, match=r"scanned PDF.*ocrmypdf"): pdf_to_text(SCAN_PDF)


def test_encrypted_pdf_is_named():
    from pypdf import PdfReader, PdfWriter
    writer, out = PdfWriter(PdfReader(io.BytesIO(TEXT_PDF))), io.BytesIO()
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(out)
    with pytest.raises(Unreadable, match="encrypted"): pdf_to_text(out.getvalue())


def test_word_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr("distillery.reading.word.MAX_UNPACKED", 1000)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z: z.writestr("word/document.xml", b"0" * 5000)
    with pytest.raises(Unreadable, match="unpacks to more"): docx_to_text(out.getvalue())


def test_word_tables_and_lists():
    import docx
    word, out = docx.Document(), io.BytesIO()
    word.add_paragraph("Keep dry", style="List Bullet")
    table = word.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Code", "12"
    word.save(out)
    assert docx_to_text(out.getvalue()) == "- Keep dry\n\nCode | 12"


@pytest.mark.parametrize(("data", "reason", "name"), [
    (b"", "empty file", "a.txt"), (b"  \n", "empty file", "a.txt"), (b"\x89PNG\0\0", "binary", "a.txt"),
    (b"%PDF-1.7 cut", "broken PDF", "a.pdf"), (b"%PDF-1.7 cut", "broken PDF", "a"), (b"%PDF-1.7\n1 0 obj endobj", "broken PDF", "a.txt"),
    (b"PK\x03\x04rest", "archive", "a.txt"), (b"PK\x03\x04 word/ cut", "broken Word", "a.txt"), (b"words", "broken Word", "a.docx"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Word format", "a.docx"), (b"{\\rtf1 Clean it.}", "rich text", "a.txt"),
    ("Größe des Papiers und Härte der Farbe".encode("cp1252"), "iconv -f", "a.txt"), (b"--- !!! ---", "no words", "a.txt")])
def test_every_broken_file_has_a_reason(data, reason, name):
    with pytest.raises(Unreadable, match=reason): read_document(data, name)


def test_one_broken_file_among_good_ones(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.md").write_text("---\ntitle: Inks & co\n---\n# Other\n\nKeep the inks cool and dry.")
    (tmp_path / "scan.pdf").write_bytes(SCAN_PDF)
    (tmp_path / ".hidden.md").write_text("# Hidden\n\nNot for you.")
    corpus = read_documents(tmp_path)
    assert [(d.path, d.title) for d in corpus.documents] == [("sub/good.md", "Inks & co")]
    assert [s.path for s in corpus.skipped] == ["scan.pdf"]


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "docs"
    outside.mkdir(); folder.mkdir()
    (outside / "secret.txt").write_text("The secret is kept here for good.")
    (folder / "inside.txt").write_text("Nothing is secret in this file.")
    os.symlink(outside / "secret.txt", folder / "link.txt")
    os.symlink(outside, folder / "door")
    os.symlink(folder / "inside.txt", folder / "twin.txt")
    corpus = read_documents(folder, include=["**/*", "door/*"])
    assert "secret is kept" not in "".join(d.text for d in corpus.documents)
    assert any("not followed" in s.reason for s in corpus.skipped)
    assert len(corpus.documents) == 1


def test_large_files_and_pipes(tmp_path):
    (tmp_path / "big.txt").write_text("word " * 3000)
    (tmp_path / "small.txt").write_text("A small file with words in it.")
    os.mkfifo(tmp_path / "pipe")
    corpus = read_documents(tmp_path, max_file_mb=0.01)
    assert [d.path for d in corpus.documents] == ["small.txt"]
    assert "documents.max_file_mb" in corpus.skipped[0].reason


@pytest.mark.parametrize("setup", ["nothing", "missing", "unreadable"])
def test_folders_without_documents(tmp_path, setup):
    if setup == "unreadable": (tmp_path / "a.pdf").write_bytes(SCAN_PDF)
    with pytest.raises(DistilleryError) as e: read_documents(tmp_path / "no" if setup == "missing" else tmp_path)
    assert e.value.fix
    assert {"nothing": "no documents in", "missing": "no folder or file", "unreadable": "scanned PDF"}[setup] in e.value.message


@given(st.text(max_size=60))
def test_ids_are_safe_whatever_the_name(name):
    made = make_id(name)
    assert made == make_id(name)
    assert all(c.isascii() and (c.isalnum() or c == "-") for c in made)
    assert len(made) <= 49


def test_hostile_markdown_is_words():
    text = markdown_to_text("# <script>alert(1)</script>\n\n<img src=x onerror=alert(2)>\n\n<script>\nalert(3)\n</script>\n\n<b>bold</b>")
    assert "alert(1)" in text
    assert "<img src=x onerror=alert(2)>" in text
    assert "<b>" not in text
    assert not is_markup('<img src="a"/onerror=x()>')


def test_html_keeps_words_and_drops_programs():
    page = "<html><head><title>T</title><style>p{}</style></head><body><script>x()</script><h2>A</h2>one"
    page += "<div>two<br>three</div><pre>a\n b</pre></body></html>"
    assert html_to_text(page) == "## A\n\none\n\ntwo\nthree\n\na\n b"
    assert read_document(b'<html><meta charset="iso-8859-1"><p>Gr\xf6\xdfe', "a").text == "Größe"


def test_utf16_and_windows_line_ends():
    assert read_document("# A\r\n\r\nGröße hier.".encode("utf-16"), "a.txt").text == "# A\n\nGröße hier."


words = st.sampled_from(["Raven", "stands", "in", "Hall", "3", "e.g.", "7,200", "Dr.", "K.", "x" * 30, "Größe", "—", "(see", "9)"])
sentence = st.lists(words, min_size=1, max_size=40).map(lambda w: " ".join(w) + ".")
block = st.one_of(sentence, st.lists(sentence, min_size=1, max_size=6).map(" ".join),
                  sentence.map(lambda s: "- " + s), sentence.map(lambda s: "## " + s[:20].strip()))


@settings(max_examples=60)
@given(st.lists(block, min_size=1, max_size=8).map("\n\n".join), st.integers(5, 60), st.integers(0, 20))
def test_chunks_are_slices_that_fit_and_miss_nothing(text, most, least):
    document = Document(doc_id="d", path="d.md", title="D", text=text, mime="text/markdown", digest="0")
    chunks = chunk_documents([document], most, least)
    assert all(text[c.start : c.end] == c.text and c.text.strip() for c in chunks)
    assert all(a.end <= b.start for a, b in pairwise(chunks))
    assert len({c.chunk_id for c in chunks}) == len(chunks)
    covered = {i for c in chunks for i in range(c.start, c.end)}
    assert all(i in covered or text[i].isspace() for a, b in split_sentences(text) for i in range(a, b))
    for c in chunks:
        if count_tokens(c.text.removeprefix("- ")) > most: assert len(c.text.removeprefix("- ").split()) == 1 or "## " in c.text


def test_a_sentence_is_cut_only_when_it_cannot_fit():
    text = "## Long\n\n" + " ".join(f"Sentence {i} has just six words." for i in range(30)) + " " + "word " * 80 + "end."
    sentences = {text[a:b] for a, b in split_sentences(text)}
    cut = [s for s in sentences if count_tokens(s) <= 40 and not any(s in text[a:b] for _, a, b in passages(text, 40, 10))]
    assert cut == []


def test_headings_without_text_make_no_chunk():
    assert sections("# A\n\n## B\n\n## C\n\nWords here.") == [("C", 11, 28)]
    assert sections("# A\n\n## B") == []


@pytest.mark.skipif(not (SHARED / "audio_docs").is_dir(), reason="../shared/data is not here")
def test_sixty_real_pages(tmp_path):
    import tarfile
    with tarfile.open(SHARED / "audio_docs" / "audio_docs.tar.gz") as tar: tar.extractall(tmp_path, filter="data")
    corpus = read_documents(tmp_path, include=["**/*.md"])
    chunks = chunk_documents(corpus.documents)
    texts = {d.doc_id: d.text for d in corpus.documents}
    assert len(corpus.documents) >= 60
    assert all(texts[c.doc_id][c.start : c.end] == c.text for c in chunks)
    assert max(count_tokens(c.text) for c in chunks) <= 220
    assert not any(mark in d.text for d in corpus.documents for mark in ("{% hint", "<figure>", "\\par "))


def test_the_shipped_handbook_is_cut_as_the_teacher_expects():
    import re
    folder = Path(__file__).parents[1] / "distillery" / "data" / "handbook"
    if not folder.is_dir(): pytest.skip("no handbook yet")
    chunks = chunk_documents(read_documents(folder).documents)
    assert all(re.fullmatch(r"## [^\n]+\n\n[^\n]+", c.text) for c in chunks)
    assert len(chunks) >= 90


PEAK = """
import sys
sys.path.insert(0, sys.argv.pop())
from peak import peak_mib
from pathlib import Path
from distillery.core.config import load_config
from distillery.pairs.stages import pairs_stages
from distillery.engine.source import open_source
from distillery.engine.plan import Plan
folder, cache = map(Path, sys.argv[1:])
config = load_config(preset="technical-docs")
done = Plan(pairs_stages(open_source(folder, None, None), config, cache)[:1], config, cache).run()
print(round(1024 * peak_mib()), sum(1 for _ in (done["documents"].path / "documents.jsonl").open()))
"""


@pytest.mark.slow
def test_documents_are_streamed(tmp_path):
    "Ten times the documents take no more than a tenth more memory."
    peaks, sentence = [], "The press number {} of hall {} prints {} sheets an hour and rests on Mondays. "
    for n in (100, 1000):
        folder = tmp_path / f"docs{n}"
        folder.mkdir()
        for i in range(n): (folder / f"p{i}.md").write_text(f"# Press {i}\n\n" + sentence.format(i, i % 7, i * 3) * 8)
        command = [sys.executable, "-c", PEAK, str(folder), str(tmp_path / f"cache{n}"), str(Path(__file__).parent)]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, read = map(int, said.stdout.split())
        assert read == n
        peaks.append(peak)
    assert peaks[1] <= 1.1 * peaks[0], peaks
