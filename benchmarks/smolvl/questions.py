"""Questions about a picture, or two, and how the target is taught to answer them: in sentences of our own.

Each wording has one manner of answering, so that what the target says greedily is as varied as what it is asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pictures import COLORS, SHAPES, Picture

CORNERS = {"circle": "no corners at all", "triangle": "three corners", "rectangle": "four corners"}
EXTENT = {"large": "it fills a good part of the picture", "small": "it takes up only a little of the picture"}
THINGS = {
    "circle": (
        "a hole in the ground",
        "a blueberry",
        "a wooden wheel",
        "a smooth pebble",
        "a pea",
        "a ripe tomato",
        "a glass bead",
        "the sun at noon",
    ),
    "rectangle": (
        "a blackboard",
        "a swimming pool",
        "a bar of chocolate",
        "a block of concrete",
        "a football field",
        "a brick",
        "an old suitcase",
        "a piece of butter",
    ),
    "triangle": (
        "the roof of an old barn",
        "a sail on the sea",
        "a slice of bread",
        "a mountain of stone",
        "a fir tree",
        "a warning sign",
        "a tent in the woods",
        "a piece of cheese",
    ),
}
"""What a shape looks like in each colour, in the order of COLORS."""

DESCRIBE = (
    (
        ("What does the picture show?", "What is in the image?", "What do you see here?"),
        "The picture shows a {size} {color} {shape} on a plain light background. There is nothing else to see in it, "
        "only this one {shape}.",
    ),
    (
        ("Describe the image.", "Describe what you see.", "Give me a short description of this picture."),
        "This is a simple drawing of one shape. The shape is a {shape}, it is {size}, and it is painted {color} all "
        "over.",
    ),
    (
        ("Describe the picture for a small child.", "How would you show this to a child?"),
        "Look, here is a {size} {color} {shape}! Can you find something else that is {color} in your room, or "
        "something that has the form of a {shape}?",
    ),
    (
        ("How big is the shape?", "Is the shape large or small?"),
        "The shape is {size}, {extent}. It is a {shape}, and the color that it is painted in is {color}.",
    ),
    (
        ("How many corners does the shape have?", "Count the corners of the shape."),
        "The shape has {corners}, because it is a {shape}. The {shape} that you see here is {size}, and its color is "
        "{color}.",
    ),
    (
        ("What does this remind you of?", "What could this be a picture of?"),
        "A {color} {shape} like this one makes me think of {thing}. Somebody else may see another thing in it, because "
        "it is only a {size} {shape}.",
    ),
    (
        ("How would I paint this picture?", "Tell me how to draw this."),
        "First, paint the whole paper in a light color. Then draw a {size} {shape} on it with a pencil, and fill the "
        "{shape} with {color} paint.",
    ),
)
"""(wordings, answer) about one picture."""

NAMED = {
    "what color is the shape": "The color of the shape is {color}. More exactly, the image shows a {size} {color} "
    "{shape} in front of a very light background.",
    "what is the color of the shape": "It is {color}. The shape is a {size} {shape}, and every part of the {shape} has "
    "this same {color} color.",
    "what color is the": "The {shape} in this image is {color}. It is a {size} {shape}, and there is nothing else in "
    "the picture that is {color}.",
    "what is the color of the": "The {shape} has the color {color}. It looks {size} in the picture, and no other shape "
    "stands beside the {color} {shape}.",
    "what shape": "The shape in the image is a {shape}. It is a {size} one, and its color is {color} from one side to "
    "the other.",
    "what is the": "The {color} shape is a {shape}. It is rather {size}, and it is the only thing that stands on the "
    "light background.",
}
"""Manners of answering easy-vqa's own questions, by how they begin; the first that fits."""

YES = "Yes, there is a {asked} in the image. It is a {size} {color} {shape}, and it stands alone on a light background."
NO = (
    "No, there is no {asked} in the image. The only shape that I can see in it is a {size} {shape}, and its color is "
    "{color}."
)
RIGHT = (
    "Yes, that is right, I can see no {asked} here. What the picture shows instead is a {size} {color} {shape}, and "
    "nothing more."
)
WRONG = "No, that is not right, because there is a {asked} in the picture. To be exact, it is a {size} {color} {shape}."

BOTH = ("What do the two pictures show?", "Compare the two images.", "What is the difference between these pictures?")
SAME_COLOR = ("Do the two pictures show the same color?", "Are both shapes of the same color?")
SAME_SHAPE = ("Do the two pictures show the same shape?", "Is the shape the same in both images?")
ANSWER_BOTH = (
    "The first picture shows a {size} {color} {shape}, and the second picture shows a {size2} {color2} {shape2}."
)


@dataclass(frozen=True)
class Asked:
    """A conversation to be: pictures, then questions with the answers that the target is taught."""

    pictures: tuple[Picture, ...]
    turns: tuple[tuple[str, str], ...]


def draw(rng: random.Random, pictures: Sequence[Picture]) -> Asked:
    """One or two questions about a picture drawn from `pictures`, or one about two."""
    kind = rng.random()
    if kind < 0.15:
        pair = (rng.choice(pictures), rng.choice(pictures))
        return Asked(pair, (about_two(rng, *pair),))
    picture = rng.choice(pictures)
    count = 1 if kind < 0.65 else 2
    turns: dict[str, str] = {}
    while len(turns) < count:
        turns.update([about_one(rng, picture)])
    return Asked((picture,), tuple(turns.items()))


def about_one(rng: random.Random, picture: Picture) -> tuple[str, str]:
    """A question and its answer: easy-vqa's own as often as one of ours."""
    if rng.random() < 0.5:
        question, word = rng.choice(picture.asked)
        answer = easy_vqa_answer(picture, question, word)
        return (question if rng.random() < 0.5 else question.capitalize()), answer
    wordings, answer = rng.choice(DESCRIBE)
    return rng.choice(wordings), fill(answer, picture)


def easy_vqa_answer(picture: Picture, question: str, word: str) -> str:
    """easy-vqa's answer in one word, said in sentences."""
    if word not in ("yes", "no"):
        manner = next(manner for start, manner in NAMED.items() if question.startswith(start))
        return fill(manner, picture)
    words = question.rstrip("?").split()
    asked = next(f"{word} shape" if word in COLORS else word for word in words if word in COLORS + SHAPES)
    denied = "not" in words or "no" in words
    manner = (RIGHT if word == "yes" else WRONG) if denied else (YES if word == "yes" else NO)
    return fill(manner, picture, asked=asked)


def about_two(rng: random.Random, first: Picture, second: Picture) -> tuple[str, str]:
    """A question that needs both pictures."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(BOTH), both(ANSWER_BOTH, first, second)
    same, what, wordings = (
        (first.color == second.color, "color", SAME_COLOR),
        (first.shape == second.shape, "shape", SAME_SHAPE),
    )[kind - 1]
    verdict = f"Yes, the {what} is the same" if same else f"No, the {what} is not the same"
    return rng.choice(wordings), both(verdict + " in both of them. " + ANSWER_BOTH, first, second)


def fill(answer: str, picture: Picture, **further: str) -> str:
    """`answer` with what the picture shows in its places."""
    return answer.format(**attributes(picture), **further)


def both(answer: str, first: Picture, second: Picture) -> str:
    """The same for two pictures: those of the second stand at {color2}, {shape2}, {size2}."""
    return answer.format(**attributes(first), **{f"{name}2": word for name, word in attributes(second).items()})


def attributes(picture: Picture) -> dict[str, Any]:
    """The words that answers are made with."""
    return {
        "color": picture.color,
        "shape": picture.shape,
        "size": picture.size,
        "extent": EXTENT[picture.size],
        "corners": CORNERS[picture.shape],
        "thing": THINGS[picture.shape][COLORS.index(picture.color)],
    }
