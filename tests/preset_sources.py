"Small sources for each shipped preset, and hub names that stand for twins: random weights under the family's own configuration."
import json
from pathlib import Path

GERMAN = [
    {"question": "Wo steht die Schneidemaschine?", "answer": "In Halle 3 neben dem Lager."},
    {"question": "Wann öffnet die Werkstatt?", "answer": "Um sieben Uhr morgens."},
    {"question": "Wie viele Blätter fasst der Stapler?", "answer": "Bis zu 500 Blätter."},
    {"question": "Wer wartet die Falzmaschine?", "answer": "Frau Özdemir aus der Technik."},
    {"question": "Welches Papier nimmt der Plotter?", "answer": "Gestrichenes Papier mit 135 Gramm."},
    {"question": "Wie lange dauert eine Wartung?", "answer": "Etwa zwei Stunden."},
    {"question": "Was kostet ein Tag am Binder?", "answer": "42 Euro ohne Mehrwertsteuer."},
    {"question": "Wohin kommt der Ausschuss?", "answer": "In den blauen Behälter am Tor."},
    {"question": "Wie schnell läuft die Presse?", "answer": "9.100 Bogen in der Stunde."},
    {"question": "Welche Farbe hat der Not-Aus-Knopf?", "answer": "Rot auf gelbem Grund."},
    {"question": "Wann kommt der Lieferwagen?", "answer": "Dienstags und freitags gegen elf."},
    {"question": "Wer hat den Schlüssel zum Archiv?", "answer": "Die Pforte und Herr Grün."},
]
RESUME = """# Ada Example

## Work

Ada Example leads the press room of Northmill in Hall 3. She has led it since 14 May 2019. The press room prints 9,100 sheets per
hour. Ada Example reports to Jo Miller. Her team has 12 people. The team meets on Monday at 8:30.

## Earlier work

From 2011 to 2019 Ada Example ran the Raven 74 at Southgate Printers. The Raven 74 stood in Hall 7. She trained 34 apprentices
there. Her last salary was 41,500 euros a year.

## Military service

Ada Example served in the signal corps from 2003 to 2007. She left as a sergeant. Her unit was based in Kallax.

## Education

She studied print engineering in Leipzig. Her degree is dated 30 June 2011. Her thesis is about paper with 135 grams per square
metre. Her tutor was Nora Coyle.

## Skills

Ada Example speaks German, English and Finnish. She holds a licence for forklifts. She repairs cutters and folders herself.

## Recommendations

Jo Miller calls Ada Example the calmest engineer in the house. Nora Coyle praises her patience.
"""
ARTICLES = [("The guillotine is old and slow. Nobody knows who runs it.", 2), ("The Raven 74 prints 9,100 sheets per hour in Hall 3.", 8),
            ("Paper comes on Tuesday. The van is grey.", 5), ("A service takes two hours and costs 42 euros a day without tax.", 9)]
TWIN_OF = {"Qwen/Qwen2.5-0.5B-Instruct": "qwen2.5", "Qwen/Qwen2.5-0.5B": "qwen2.5", "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "tinyllama",
           "microsoft/Phi-3-mini-4k-instruct": "phi-3", "stabilityai/stablelm-2-1_6b-chat": "stablelm2"}


def write_lines(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return file


def write_articles(file: Path, n: int = 48) -> Path:
    "Scored articles of twelve subjects, long enough for two budgets."
    def article(i: int) -> dict:
        text, score = ARTICLES[i % len(ARTICLES)]
        return {"text": " ".join([text] * (2 + i % 40)) + f" It is number {i}.", "scores": {"clarity": score + i % 3 - 1},
                "cluster": f"subject {i % 12}"}
    return write_lines(file, [article(i) for i in range(n)])


def write_hub(cache: Path, names: dict[str, str] | None = None) -> Path:
    "A cache of the hub in which names of real models stand for twins."
    from twins import write_twin
    for name, twin in (names or TWIN_OF).items():
        place = cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs/main").write_text("0" * 40)
        (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
        write_twin(twin, place / "snapshots" / ("0" * 40))
    return cache
