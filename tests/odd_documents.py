"Documents made for tests: Word files from XML, PDFs from lines, and odd files of every kind drawn at random."
import io
import random
import re
import string
import zipfile
import zlib

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
M = "http://schemas.openxmlformats.org/officeDocument/2006/math"
DOCUMENT = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"


def word(body: str, **parts: bytes) -> bytes:
    "A Word file with this body; further parts by name, dots for slashes are not needed."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("[Content_Types].xml",
                   '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="xml" '
                   f'ContentType="application/xml"/><Override PartName="/word/document.xml" ContentType="{DOCUMENT}"/></Types>')
        z.writestr("_rels/.rels", '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
                   f'<Relationship Id="r1" Type="{RELATION}" Target="word/document.xml"/></Relationships>')
        z.writestr("word/document.xml", f'<w:document xmlns:w="{W}" xmlns:m="{M}"><w:body>{body}</w:body></w:document>')
        for name, data in parts.items(): z.writestr(f"word/{name}", data)
    return out.getvalue()


def run(text: str, raised: bool = False) -> str:
    look = '<w:rPr><w:vertAlign w:val="superscript"/></w:rPr>' if raised else ""
    return f'<w:r>{look}<w:t xml:space="preserve">{text}</w:t></w:r>'


def para(*runs: str) -> str: return f"<w:p>{''.join(r if r.startswith('<') else run(r) for r in runs)}</w:p>"


def cell(*content: str, look: str = "") -> str: return f"<w:tc><w:tcPr>{look}</w:tcPr>{''.join(content)}</w:tc>"


def table(*rows: list[str]) -> str:
    return "<w:tbl>" + "".join(f"<w:tr>{''.join(c if c.startswith('<') else cell(para(c)) for c in row)}</w:tr>"
                               for row in rows) + "</w:tbl>"


def pdf(*pages: list[tuple[float, float, float, str]]) -> bytes:
    "A PDF: on each page, lines of text with place and size."
    kids = [5 + 2 * i for i in range(len(pages))]
    listed = b" ".join(b"%d 0 R" % k for k in kids)
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [%s] /Count %d >>" % (listed, len(kids)),
               b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>", b"null"]
    for i, lines in enumerate(pages):
        said = lambda text: re.sub(rb"([()\\])", rb"\\\1", text.encode("cp1252", "replace"))
        drawn = b"\n".join(b"BT /F1 %g Tf 1 0 0 1 %g %g Tm (%s) Tj ET" % (size, x, y, said(text)) for x, y, size, text in lines)
        font = b"/Resources << /Font << /F1 3 0 R >> >>"
        objects += [b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R %s >>" % (6 + 2 * i, font),
                    b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn)]
    out, places = b"%PDF-1.4\n", []
    for i, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (i, body)
    rows = b"".join(b"%010d 00000 n \n" % p for p in places)
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + rows + end


SENTENCES = ["The drum is cleaned every 14 days.", "Größe und Härte zählen.", "Das Öl läuft über.", "温度は20度です。",
             "Насос стоит в зале 3.",
             "المضخة في القاعة ٣.",
             "It lasts 10<sup>6</sup> cycles.", "See [the list](#a).", "| a | b |\n|---|---|\n| 1 | 2 |", "```\n# no heading\n```",
             "# Heading", "- item\n  - inner",
             "<!-- hidden -->", "~~old~~ new", "<div><p>x", "&#xD800;&#0;", "\ud800", "\x07\x1b[31m", "\u202e\u2066", "$x^2$", "[^1]",
             "[^1]: note", "::: tip\nx\n:::"]
BOMBS = ["<a ", "<div>", "> ", "[", "*a ", "`", "<!--", "|a", "\n", " ", "&", "<sup>", "- ", "# ", "{% ", "<table><tr><td>", "]]>", "\\",
         "<b><i>", "~", "_"]


def _text(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0: return rng.choice(BOMBS) * rng.choice([10, 1000, 20_000]) + rng.choice(SENTENCES)
    if kind == 1: return "".join(chr(rng.choice([rng.randrange(1, 0x250), rng.randrange(0x20, 0x3000), rng.randrange(0x1F000, 0x1FA00)]))
                                 for _ in range(400))
    parts = [rng.choice(SENTENCES) for _ in range(rng.randrange(1, 40))]
    front = rng.choice(["", "---\ntitle: a: b\n---\n", "+++\ntitle = 3\n+++\n", "---\ndate: 0000-00-00\n---\n",
                        "---\na: &a [1]\nb: [*a, *a]\n---\n", "---\n[[[\n---\n"])
    return front + rng.choice(["\n\n", "\n", " ", "\r\n", "\u2028"]).join(parts)


def _markup(rng: random.Random) -> str:
    tags = ["p", "div", "table", "tr", "td", "th", "ul", "li", "pre", "sup", "h1", "nav", "main", "article", "footer", "script", "svg",
            "math", "template", "form",
            "select", "a", "b", "br", "details", "frameset", "plaintext", "textarea", "title", "body", "html"]
    pieces = ["<!doctype html>"]
    for _ in range(rng.randrange(5, 120)):
        look = rng.choice(["", ' rowspan="9999999999"', ' colspan="100000"', ' rowspan="-1"', ' hidden', ' class="cookie nav footer"',
                           ' href="#x"', ' style="display:none"'])
        pieces.append(rng.choice([f"<{rng.choice(tags)}{look}>", f"</{rng.choice(tags)}>", rng.choice(SENTENCES)]))
    return "".join(pieces)


def _word(rng: random.Random) -> bytes:
    said = rng.choice(SENTENCES).replace("&", "&amp;").replace("<", "&lt;").encode("utf-8", "replace").decode()
    bodies = [para(said.translate(dict.fromkeys(range(32)))),
              table(["a", "b"], [cell(para("wide"), look='<w:gridSpan w:val="100000"/>')], [cell(table(["in", "ner"])), "x"]),
              "<w:p/>" * rng.choice([3, 2000]), f"<w:sdt><w:sdtContent>{para('control')}</w:sdtContent></w:sdt>",
              para('<w:ins w:id="1"><w:r><w:t>new</w:t></w:r></w:ins>', '<w:del w:id="2"><w:r><w:delText>old</w:delText></w:r></w:del>'),
              f"<w:p><m:oMath><m:rad><m:deg/><m:e>{'<m:r><m:t>x</m:t></m:r>' * rng.randrange(3)}</m:e></m:rad></m:oMath></w:p>", "<w:tbl/>",
              "<w:tbl><w:tr/></w:tbl>",
              '<w:p><w:pPr><w:pStyle w:val="None"/></w:pPr></w:p>', "<w:unknown/>", '<w:tc><w:vMerge w:val="x"/></w:tc>',
              "<w:sdt>" * rng.choice([0, 900])]
    made = "".join(rng.choice(bodies) for _ in range(rng.randrange(1, 9)))
    return word(made + "</w:sdt>" * made.count("<w:sdt>"))


def _pdf(rng: random.Random) -> bytes:
    pages = [[(rng.uniform(-50, 650), rng.uniform(-50, 850), rng.choice([0, 1, 6, 12, 400]), rng.choice(SENTENCES))
              for _ in range(rng.randrange(30))]
             for _ in range(rng.randrange(1, 5))]
    made = pdf(*pages)
    packed = zlib.compress(b"BT /F1 1 Tf (x) Tj ET " * rng.choice([1, 20_000]))
    more = b"7 0 obj\n<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream\nendobj\n" % (len(packed), packed)
    return rng.choice([made, made, made.replace(b"endobj\n6 0 obj", b"endobj\n" + more + b"6 0 obj")])


def _broken(rng: random.Random, data: bytes) -> bytes:
    "Cut, flipped, doubled, or as it was."
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(6)
    if kind == 0: return data[:at]
    if kind == 1: return data[:at] + bytes(rng.randrange(256) for _ in range(20)) + data[at:]
    if kind == 2: return bytes(b ^ (1 << rng.randrange(8)) if rng.random() < 0.002 else b for b in data)
    if kind == 3: return data + data
    return data


def odd_document(rng: random.Random) -> tuple[str, bytes]:
    "A file that may be anything: its name and content."
    suffix = rng.choice([".md", ".txt", ".html", ".docx", ".pdf", ".md", ".html"])
    codec = rng.choice(["utf-8", "utf-8", "utf-16", "cp1252"])
    written = lambda text: text.encode(codec, "surrogatepass" if codec[0] == "u" else "replace")
    makers = {".docx": _word, ".pdf": _pdf, ".html": lambda rng: written(_markup(rng))}
    data = makers.get(suffix, lambda rng: written(_text(rng)))(rng)
    if rng.random() < 0.1: suffix = rng.choice([".md", ".txt", ".html", ".docx", ".pdf", ".csv", ""])
    name = "".join(rng.choice(string.ascii_letters + " äñ—#%&'\";$(){}[]=,") for _ in range(rng.randrange(1, 20))).strip() or "x"
    return name + suffix, _broken(rng, data)
