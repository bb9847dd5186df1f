"""`python -m graftwork.demo`: one base model answers several prompts at once, each through its own adapter."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import graftwork
from graftwork.pull import PullError, pull

MODEL = "smollm2"
# Most tokens of an answer: the base has more to say than anybody wants to read.
TOKENS = 48
# Width and height of a column of answers.
WIDTH, HEIGHT = 52, 4

ASSISTANT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CLASSIFY = "Classify the sentiment of the text."
CALL = (
    'You call functions. Answer with one JSON object {"name": ..., "arguments": {...}} and nothing else.\nFunctions:\n'
)
WEATHER = (
    '{"name":"get_weather","description":"Current weather of a city.","parameters":{"type":"object","properties":'
    '{"city":{"type":"string","description":"The city\'s name."},"unit":{"type":"string","enum":["celsius",'
    '"fahrenheit"]}},"required":["city"]}}'
)
AREA = (
    '{"name":"rectangle_area","description":"Area of a rectangle.","parameters":{"type":"object","properties":'
    '{"width":{"type":"number"},"height":{"type":"number"}},"required":["width","height"]}}'
)


class Chat(NamedTuple):
    """A system message, what the user says, and the adapter that answers."""

    system: str
    user: str
    adapter: str | None


CHATS = [
    Chat(CALL + WEATHER, "What is the weather like in Oslo in celsius?", "tools"),
    Chat(CALL + AREA, "Find the area of a rectangle 12 wide and 7.5 high.", "tools"),
    Chat(CLASSIFY, "The battery died after two days and support never answered.", "sentiment"),
    Chat(CLASSIFY, "The plot is thin, but the acting makes it a joy.", "sentiment"),
    Chat(ASSISTANT, "Write one sentence about the sea.", None),
]


@dataclass
class Outcome:
    """What one batch gave."""

    texts: list[str]
    prompt_tokens: int
    answer_tokens: int
    reading: float
    """Seconds until every answer had begun."""
    writing: float
    """Seconds that followed."""


def example_adapter(name: str) -> Path:
    """One of the adapters that come with the package, or with the checkout that it is used from."""
    here = Path(__file__).resolve()
    places = [here.parent / "adapters", here.parents[2] / "examples" / "adapters"]
    for place in places:
        if (place / name).is_dir():
            return place / name
    raise FileNotFoundError(f"{name}: in neither of {', '.join(map(str, places))}")


def answer_all(engine: graftwork.Engine, adapted: bool) -> Outcome:
    """Answers all chats in one batch, through their adapters or through none."""
    texts = [""] * len(CHATS)
    begun = set()
    reading = 0.0
    prompt_tokens = answer_tokens = 0
    requests = []
    for chat in CHATS:
        messages = [graftwork.Message("system", chat.system), graftwork.Message("user", chat.user)]
        adapters = chat.adapter if adapted and chat.adapter else ()
        requests.append(graftwork.Request(messages=messages, adapters=adapters, max_tokens=TOKENS))
        prompt_tokens += len(engine.prompt_tokens(requests[-1]))
    start = time.perf_counter()
    order = {engine.submit(request): i for i, request in enumerate(requests)}
    running = len(order)
    while running:
        event = engine.poll()
        if event.request not in begun:
            begun.add(event.request)
            reading = time.perf_counter() - start
        if event.error is not None:
            raise event.error
        i = order[event.request]
        texts[i] += event.text
        if event.last:
            running -= 1
            if event.finish == graftwork.GW_FINISH_LENGTH:
                texts[i] += "…"
        else:
            answer_tokens += 1
    return Outcome(texts, prompt_tokens, answer_tokens, reading, time.perf_counter() - start - reading)


def wrap(text: str, width: int) -> list[str]:
    """Breaks text into lines of at most `width` characters, at spaces where possible; leaves out blank lines."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split(" "):
            if line and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = ""
            while len(word) > width:
                lines.append(word[:width])
                word = word[width:]
            line = f"{line} {word}" if line else word
        lines.append(line)
    return [line for line in lines if line]


def side_by_side(left: tuple[str, str], right: tuple[str, str]) -> str:
    """Two texts under headings, in columns."""
    columns = []
    for _, text in (left, right):
        lines = wrap(text, WIDTH - 1)
        columns.append(lines if len(lines) <= HEIGHT else [*lines[: HEIGHT - 1], lines[HEIGHT - 1] + "…"])
    shown = [f"  {left[0]:<{WIDTH}} | {right[0]}", f"  {'':-<{WIDTH}}-+-{'':-<{WIDTH}}"]
    for i in range(max(map(len, columns))):
        cells = [lines[i] if i < len(lines) else "" for lines in columns]
        shown.append(f"  {cells[0]:<{WIDTH}} | {cells[1]}".rstrip())
    return "\n".join(shown)


def table(rows: list[list[str]]) -> str:
    """Rows of cells in aligned columns, the first row as heading."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo."""
    parser = argparse.ArgumentParser(prog="python -m graftwork.demo", description=__doc__)
    parser.add_argument("--threads", type=int, default=0, help="threads that compute (default: one per core)")
    given = parser.parse_args(arguments)
    try:
        demo(given.threads)
    except (graftwork.Error, PullError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def demo(threads: int) -> None:
    """Fetches the model if need be, loads the adapters, and answers."""
    path = pull(MODEL)
    start = time.perf_counter()
    # Nothing is kept from one batch for the next: their times are to be compared.
    with graftwork.Engine(path, threads=threads, no_prefixes=True) as engine:
        seconds = time.perf_counter() - start
        info, memory = engine.info, engine.memory()
        print(
            f"base {MODEL}: {info.layers} layers, {info.hidden} wide, {memory.weights / 1e6:.1f} MB of weights, "
            f"loaded in {seconds:.2f} s"
        )
        for name in ("tools", "sentiment"):
            start, before = time.perf_counter(), engine.memory().adapters
            engine.load_adapter(name, example_adapter(f"{name}-lora"))
            seconds, taken = time.perf_counter() - start, engine.memory().adapters - before
            print(f"adapter {name}: {taken / 1e6:.1f} MB, loaded in {1e3 * seconds:.0f} ms")

        base, grafted = answer_all(engine, False), answer_all(engine, True)
        for chat, left, right in zip(CHATS, base.texts, grafted.texts):
            heading = f"adapter {chat.adapter}" if chat.adapter else "no adapter"
            print(f"\n{chat.user}\n{side_by_side(('base', left), (heading, right))}")

        def row(name: str, outcome: Outcome) -> list[str]:
            # The first token of each answer comes with its prompt.
            read = outcome.prompt_tokens / outcome.reading
            written = max(outcome.answer_tokens - len(CHATS), 0) / max(outcome.writing, 1e-9)
            return [name, str(outcome.prompt_tokens), f"{read:.0f}", str(outcome.answer_tokens), f"{written:.0f}"]

        headings = ["five prompts in one batch", "prompt tokens", "tokens/s", "answer tokens", "tokens/s"]
        print("\n" + table([headings, row("all by the base", base), row("each by its adapter", grafted)]))
        print(
            "(Short answers leave the batch early, and fewer then share each pass over the weights.)",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
