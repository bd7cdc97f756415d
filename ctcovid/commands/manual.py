"""ctcovid manual: the pages of the reference."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import UsageError, did_you_mean
from ctcovid.options.commands import COMMANDS
from ctcovid.options.manual import Options, pages
from ctcovid.options.messages import Messages
from ctcovid.options.signature import options_table

# Where a page shows the options of a command, as the command line declares them. Before the mark stands a sentence for readers of the
# file itself, to whom the mark is invisible.
OPTIONS = re.compile(r"^(?:`ctcovid manual \w+` prints the table of options here.*\n\n)?<!-- options: (\w+) -->$", re.M)


@dataclass(frozen=True)
class Page:
    """A page of the manual, or the list of all pages, as Markdown."""

    topic: str
    markdown: str

    def document(self) -> dict[str, Any]:
        return {"topic": self.topic, "markdown": self.markdown}

    def terminal(self, width: int) -> Any:
        from rich.markdown import Markdown

        return Markdown(self.markdown)

    def text(self) -> str:
        return self.markdown.rstrip("\n")


def run(options: Options, console: Console) -> Page:
    """Print a page with its tables of options, or the list of pages."""
    known = pages()
    if options.topic and options.topic not in known:
        raise UsageError(f"The manual has no page '{options.topic}'.{did_you_mean(options.topic, known)} `ctcovid manual` lists them all.")
    page = Page(options.topic, with_tables(known[options.topic]) if options.topic else _contents(known))
    console.result(page, page.document())
    return page


def with_tables(text: str) -> str:
    """The page with the tables of options that its marks stand for."""
    return OPTIONS.sub(lambda found: options_table(COMMANDS[found[1]].options, Messages), text)


def _contents(known: dict[str, str]) -> str:
    # Commands in the order in which they are used, then all else.
    topics = [*(topic for topic in COMMANDS if topic in known), *(topic for topic in known if topic not in COMMANDS)]
    titles = [(topic, known[topic].partition("\n")[0].removeprefix("# ")) for topic in topics]
    return (
        "# Pages of the manual\n\n" + "\n".join(f"- `ctcovid manual {topic}`: {title.partition(': ')[2]}" for topic, title in titles) + "\n"
    )
