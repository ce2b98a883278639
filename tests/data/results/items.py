"Twenty-four questions about eight made-up pages, and two systems that answer them: one knows more."
import random
rng = random.Random(88)
PAGES = [f"page-{k}" for k in range(8)]
ITEMS = [{"id": f"q{i:02d}", "page": PAGES[i // 3], "question": f"Room of machine {i}?", "answer": str(100 + 7 * i)} for i in range(24)]
def answers(name):
    r = random.Random(name); p = {"old": .6, "new": .8}[name]
    return {x["id"]: x["answer"] if r.random() < p else str(int(x["answer"]) + 1) for x in ITEMS}
