"""Pictures of strategies that follow one path: greedy search, sampling, contrastive search, DoLa, and others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from tools.guide.bars import LINE, Bar, bars_of, draw_bars
from tools.guide.svg import Picture
from tools.guide.tokens import Chip, flow, shorten
from unspool.model import LanguageModel
from unspool.results.generation import Completion

PROMPT: Final = "Once upon a time"
_WIDTH: Final = 760


def repeated(tokens: Sequence[int], n: int = 4) -> list[bool]:
    """Return, per token, True if it is part of an n-gram that occurred before."""
    seen: set[tuple[int, ...]] = set()
    marks = [False] * len(tokens)
    for start in range(len(tokens) - n + 1):
        gram = tuple(tokens[start : start + n])
        if gram in seen:
            marks[start : start + n] = [True] * n
        seen.add(gram)
    return marks


def _loops(completion: Completion) -> list[Chip]:
    """Return the tokens as boxes; those of a repeated 4-gram are orange."""
    pairs = zip(completion.tokens, repeated(completion.token_ids), strict=True)
    return [Chip(text, "orange" if again else "gray") for text, again in pairs]


def greedy(lm: LanguageModel) -> Picture:
    """A greedy text with its loop."""
    completion = lm.generate(PROMPT, max_new_tokens=60).completions[0]
    picture = Picture(_WIDTH, title="Greedy search: tokens of repeated 4-grams are orange")
    picture.text(16, 26, PROMPT, "token bold")
    picture.height = flow(picture, _loops(completion), x=16, y=38, right=_WIDTH - 16) + 10
    return picture


def beam_loop(lm: LanguageModel) -> Picture:
    """Why beam search repeats itself: the probabilities of the tokens of a loop rise with each turn."""
    completion = lm.generate(PROMPT, num_beams=4, max_new_tokens=44).completions[0]
    marks = repeated(completion.token_ids)
    picture = Picture(_WIDTH, 250, title="Beam search: the probability of each token, orange in repeated 4-grams")
    left, bottom, top = 48.0, 170.0, 20.0
    step = (_WIDTH - left - 16) / len(marks)
    for share in (0, 25, 50, 75, 100):
        y = bottom - (bottom - top) * share / 100
        picture.line(left, y, _WIDTH - 16, y, "gone")
        picture.text(left - 6, y + 4, f"{share}%", "small faint end")
    for place, (text, logprob, again) in enumerate(zip(completion.tokens, completion.logprobs, marks, strict=True)):
        height = (bottom - top) * math.exp(logprob)
        x = left + step * place
        picture.rect(x + 2, bottom - height, step - 4, height, "orange" if again else "blue")
        picture.turned(x + step / 2 + 4, bottom + 8, shorten(text, 10), "token small end")
    return picture


def sample(lm: LanguageModel) -> Picture:
    """Samples with one seed and four truncations; improbable tokens are marked."""
    rows: list[dict[str, Any]] = [
        {"do_sample": True},
        {"temperature": 0.7},
        {"top_p": 0.8},
        {"min_p": 0.1},
    ]
    picture = Picture(_WIDTH, title="Samples with one seed; the model gave the red tokens a probability below 1%")
    y = 20.0
    for options in rows:
        name, value = next(iter(options.items()))
        completion = lm.generate(PROMPT, seed=1, max_new_tokens=24, **options).completions[0]
        picture.text(16, y + 6, f"{name}={value}", "token bold")
        chips = [
            Chip(text, _by_probability(each)) for text, each in zip(completion.tokens, completion.logprobs, strict=True)
        ]
        y = flow(picture, chips, x=16, y=y + 14, right=_WIDTH - 16) + 14
    for number, (kind, words) in enumerate({"gray": "10% or more", "orange": "1% to 10%", "red": "below 1%"}.items()):
        picture.rect(16 + 130.0 * number, y - 6, 12, 12, kind)
        picture.text(34 + 130.0 * number, y + 4, words, "small")
    picture.height = y + 16
    return picture


def _by_probability(logprob: float) -> str:
    probability = math.exp(logprob)
    return "gray" if probability >= 0.1 else "orange" if probability >= 0.01 else "red"


def contrastive(lm: LanguageModel) -> Picture:
    """Contrastive search: probability minus similarity, for the candidates of four steps."""
    alpha = 0.6
    trace = lm.generate(PROMPT, penalty_alpha=alpha, top_k=4, max_new_tokens=10, trace=True).trace
    assert trace is not None, "a trace was asked for"
    similarity = {
        row.node: row.similarity
        for step in trace.steps
        for row in step.rows
        if row.node is not None and row.similarity is not None
    }
    path = [node.id for node in trace.path(0)]
    picture = Picture(_WIDTH, title="Contrastive search: gain by probability, loss by similarity")
    places = [place for place in range(len(path)) if _overruled(trace, path, place, similarity)][:2]
    for number, place in enumerate(places):
        x = 16.0 + number * 376
        before = "".join(trace.nodes[each].text for each in path[:place])
        picture.text(x, 24, shorten(before, 40).replace("␣", " "), "token bold")
        parent = trace.nodes[path[place]].parent
        siblings = [node for node in trace.nodes if node.parent == parent and node.id in similarity]
        for line, node in enumerate(siblings):
            y = 44.0 + 46 * line
            gain = (1 - alpha) * math.exp(node.logprob or 0.0)
            loss = alpha * (similarity[node.id] or 0.0)
            chosen = node.id == path[place]
            picture.chip(x, y, shorten(node.text, 12), "green" if chosen else "gray", bold=chosen)
            middle = x + 212
            picture.line(middle, y - 6, middle, y + 32)
            picture.rect(middle, y - 2, 210 * gain, 11, "blue")
            picture.text(middle + 210 * gain + 4, y + 8, f"+{gain:.3f}", "small faint")
            picture.rect(middle - 210 * loss, y + 12, 210 * loss, 11, "red")
            picture.text(middle + 4, y + 22, f"−{loss:.3f}", "small faint")
            picture.text(
                x + 356, y + 15, f"= {gain - loss:.3f}".replace("-", "−"), "small end bold" if chosen else "small end"
            )
    picture.height = 44 + 46 * 4 + 8
    return picture


def _overruled(trace: Any, path: Sequence[int], place: int, similarity: Any) -> bool:
    """Return True if the kept candidate of a step is not the most probable one."""
    kept = trace.nodes[path[place]]
    rivals = [node for node in trace.nodes if node.parent == kept.parent and node.id in similarity]
    return len(rivals) == 4 and any((node.logprob or 0) > (kept.logprob or 0) for node in rivals)


def _two(picture: Picture, left: Sequence[Bar], right: Sequence[Bar], titles: tuple[str, str]) -> Picture:
    for number, (bars, title) in enumerate(zip((left, right), titles, strict=True)):
        x = 16 + number * 376
        picture.text(x, 24, title, "token bold")
        picture.height = draw_bars(picture, bars, x=x, y=36, width=352) + 8
    return picture


def dola(lm: LanguageModel) -> Picture:
    """DoLa: the distribution of the model, and the contrast with an inner layer."""
    found = lm.next_tokens(PROMPT, dola_layers="high", limit=4096)
    picture = Picture(560, title="DoLa: gray before the contrast of layers, blue after it")
    picture.text(16, 24, 'dola_layers="high"', "token bold")
    picture.height = draw_bars(picture, bars_of(found, limit=8, cutter="dola_layers"), x=16, y=36, width=520) + 8
    return picture


def guidance(lm: LanguageModel) -> Picture:
    """Classifier-free guidance: the same distribution at two scales."""
    prompt, negative = "In the forest there was a", "In the castle there was a"
    found = [lm.next_tokens(prompt, guidance_scale=scale, negative_prompt=negative, limit=4096) for scale in (1.5, 3.0)]
    picture = Picture(_WIDTH, title="Classifier-free guidance: gray without, blue with guidance")
    best = sorted(found[1].entries, key=lambda entry: -entry.processed_probability)[:5]
    common = {entry.token_id for each in found for entry in each if entry.rank <= 5} | {each.token_id for each in best}
    sides = [
        [
            Bar(each.text, each.probability, each.processed_probability, f"{100 * each.processed_probability:.1f}%")
            for each in sorted(side.entries, key=lambda entry: entry.rank)
            if each.token_id in common
        ]
        for side in found
    ]
    return _two(picture, sides[0], sides[1], ("guidance_scale=1.5", "guidance_scale=3"))


def best_of(lm: LanguageModel) -> Picture:
    """Best of n: all samples with their mean log-probability; the best is returned."""
    result = lm.generate(PROMPT, best_of=6, num_return_sequences=6, temperature=0.8, seed=1, max_new_tokens=16)
    picture = Picture(_WIDTH, 32 + 6 * 2 * LINE, title="Six samples, each with its mean log-probability per token")
    samples = sorted(result.completions, key=lambda each: -each.score)
    worst = min(each.score for each in samples)
    for line, completion in enumerate(samples):
        y, bold = 18.0 + 2 * LINE * line, " bold" if line == 0 else ""
        length = 150 * completion.score / worst
        picture.rect(16, y, length, 14, "gray" if line else "green")
        picture.text(16 + length + 8, y + 12, f"{completion.score:.2f}", f"small{bold}")
        picture.text(230, y + 12, shorten(completion.text, 70).replace("␣", " "), f"token small{bold}")
    return picture
