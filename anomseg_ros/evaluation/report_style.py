"""The style sheet of reports: light and dark, from 320 px to a wide screen, and on paper.

Series colours follow Okabe and Ito's palette for colour-blind readers, darkened on light and lightened on dark grounds
until every line has a contrast of 3:1; dash patterns tell series apart without any colour.
"""

from __future__ import annotations

from pathlib import Path

LIGHT = """
  --ground: #ffffff; --raised: #f6f7f9; --ink: #1b1f24; --soft: #57606a; --line: #d5dae1; --grid: #e7eaee;
  --accent: #0b5cad; --best: #e6f1fb; --good: #05704f; --bad: #b3420a;
  --s0: #0072b2; --s1: #c75300; --s2: #00805d; --s3: #a8467f; --s4: #8a6100; --s5: #5b4bb8;
"""

DARK = """
  --ground: #14171b; --raised: #1c2026; --ink: #e7eaee; --soft: #a5aeb9; --line: #363d47; --grid: #272c34;
  --accent: #79b8f5; --best: #17324a; --good: #4fd1a1; --bad: #ff9a5c;
  --s0: #56b4e9; --s1: #ff8f47; --s2: #35c79b; --s3: #e79ac6; --s4: #e9b93c; --s5: #b3a4ff;
"""

TEMPLATES = Path(__file__).parent / "templates"

_RULES = (TEMPLATES / "style.css").read_text(encoding="utf-8")

STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
@media print {{ :root {{ color-scheme: light; {LIGHT} }} }}
{_RULES}"""
