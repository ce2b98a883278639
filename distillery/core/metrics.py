# temporary stand-in until nbs/core/50_metrics is exported
import re, string
def normalize_answer(s):
    s = "".join(c for c in s.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())
def is_refusal(text, markers): return any(m.lower() in text.lower() for m in markers)
