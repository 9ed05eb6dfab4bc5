"""docs/settings.md says what the settings' dataclasses say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_dataclasses_say():
    spec = importlib.util.spec_from_file_location("generate_settings", ROOT / "docs" / "generate_settings.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert text == generator.page(), "write it again: python docs/generate_settings.py"
