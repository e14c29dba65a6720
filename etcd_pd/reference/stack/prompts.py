"""Prompts of mixed length: eight questions, each alone and after one, two and three passages of text."""

from __future__ import annotations

PASSAGES = (
    "The harbour wakes before the town does. By four the ice machine is running, and the first crates slide down the "
    "ramp into boats that smell of diesel and wet rope. Nobody talks much. A lamp swings over the scales where the "
    "auctioneer will stand in three hours, and gulls walk up and down the empty tables as if they owned them.",
    "Bread needs less work than people think, and more time. Flour and water, left alone for an hour, begin to hold "
    "together by themselves; salt slows them down, and a cold night in the cellar does the rest. The baker's skill is "
    "mostly in knowing when to leave the dough alone, and in an oven that is hotter than seems reasonable. A loaf that "
    "sings when it comes out, crackling as its crust cools, was given the time that it asked for.",
    "Every river on the map is drawn as a line, but a river is a habit of water, not a line. It leans against its "
    "outer bank, takes a little soil away, lays it down again at the next bend, and after a century the village that "
    "stood on the left side stands on the right. Old land registers are full of quarrels about meadows that walked.",
)

QUESTIONS = (
    "Why?",
    "Name three things that float.",
    "What did the lighthouse keeper write in his book on the longest night of the year?",
    "Write the first sentence of a story about a clock that is always eleven minutes late.",
    "A train leaves at noon and a cyclist an hour earlier, on the same road and in the same direction. Describe what "
    "both of them see when they meet.",
    "Tell a child in plain words why the moon seems to follow the car.",
    "List what you would pack for a week on an island where it rains every afternoon.",
    "Summarise what you have been told so far, in the voice of somebody who was there and would rather not have been, "
    "and end with the one detail that nobody else noticed.",
)

#: How many tokens to generate, in turn, so that requests end at different times.
MAX_NEW_TOKENS = (8, 24, 12, 40, 16, 32)


def mixed_prompts(count: int) -> list[str]:
    """``count`` prompts, short and long ones in turn; the first 32 are all different."""
    texts = []
    for number in range(count):
        context = PASSAGES[: (number + number // len(QUESTIONS)) % (len(PASSAGES) + 1)]
        texts.append("\n\n".join((*context, QUESTIONS[number % len(QUESTIONS)])))
    return texts
