"""The pack `easy-vqa`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from specdec_core import packages
from specdec_core.errors import UserError
from specdec_core.evaluate.prompts import Prompt, PromptPack, spread
from specdec_vqa.config import PLACEHOLDER, EasyVqaConfig


class EasyVqaPrompts(PromptPack):
    """The questions of easy-VQA (github.com/vzhou842/easy-VQA), each shown after its image."""

    options: EasyVqaConfig

    def __iter__(self) -> Iterator[Prompt]:
        """The prompts in the file's order. Raises UserError if the package is not installed."""
        package = packages.directory("easy_vqa")
        if package is None:
            raise UserError('prompts easy-vqa: the package is not installed; pip install "specdec-vqa[easy-vqa]"')
        directory = package / "data" / self.options.split
        try:
            questions = json.loads((directory / "questions.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"prompts easy-vqa: cannot read {error.filename}: {error.strerror}; install easy-vqa again"
            ) from error
        for number, (question, _, image) in spread([*enumerate(questions)], self.options.limit):
            content = [
                {"type": "image", "image": f"images/{image}.png"},
                {"type": "text", "text": self.options.template.replace(PLACEHOLDER, question)},
            ]
            yield Prompt(str(number), self.options.category, ({"role": "user", "content": content},), directory)
