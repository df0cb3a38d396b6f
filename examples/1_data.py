"""Show what is in a data file and which part of it is learned. Usage: 1_data.py [BASE]"""

import json
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from onebase.data.check import check
from onebase.data.formats import load_dataset
from onebase.data.template import Template
from onebase.model.fetch import resolve

ROWS = [
    {"question": "Where is my parcel?", "answer": "Happy to help! It arrives on Monday."},
    {"question": "Can I return a lamp?", "answer": "Happy to help! Yes, within 30 days."},
    {"question": "Do you ship abroad?", "answer": ""},  # a bad row: no answer to learn
]
base = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "support.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    dataset = load_dataset(file)

tokenizer = AutoTokenizer.from_pretrained(resolve(base))
template = Template(tokenizer, instruction="Answer as the shop's support desk.")
print("format:", dataset.format, dataset.columns)
print("bad rows:", *dataset.bad, sep="\n  ")
print("first example, with the learned part between ⟦ and ⟧:")
print(template.marked(dataset.examples[0]))
print("results of `onebase data check`:", ", ".join(check(dataset, template).to_dict()))
