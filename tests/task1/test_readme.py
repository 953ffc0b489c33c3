"""The README's lines of Python."""

import re


def test_they_train_and_sample(request):
    text = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    short = code.replace("5000", "5").replace("1000", "20").replace("100_000", "500")
    assert short != code
    names = {}
    exec(short, names)
    assert names["samples"].shape == (2048, 2) and len(names["losses"]) == 5
