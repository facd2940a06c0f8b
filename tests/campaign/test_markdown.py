"""Markdown: text stays text."""

from __future__ import annotations

import pytest

from campaign.markdown import code, escaped, fenced, table


def test_markup_in_text_is_escaped_and_words_are_left_alone():
    """An underscore inside a word means nothing to Markdown."""
    assert escaped("EFI_OUT_OF_RESOURCES") == "EFI_OUT_OF_RESOURCES"
    assert escaped("*a* _b_ `c` | <d> [e](f)\n# g & h") == r"\*a\* \_b\_ \`c\` \| \<d\> \[e\](f) \# g \& h"


@pytest.mark.parametrize(("text", "shown"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("a|b", "`a\\|b`")])
def test_code_has_a_fence_that_is_not_in_it(text, shown):
    """Backticks and bars included."""
    assert code(text) == shown


def test_a_block_ends_where_its_text_ends():
    """The fence is longer than any that is inside."""
    assert fenced("a\n", "sh") == "```sh\na\n```"
    assert fenced("````\n") == "`````\n````\n`````"


def test_a_table_has_a_ruler():
    """Columns of numbers are on the right."""
    assert table(("a", "b"), [("x", "1")], frozenset({1})) == "| a | b |\n| --- | --: |\n| x | 1 |"
