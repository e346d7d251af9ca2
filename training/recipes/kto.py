"""Learning from completions that are labelled good or bad."""

from transformers import PreTrainedTokenizerBase

from training.algorithms.kto import Kto
from training.data.example import Example
from training.data.pairs import labelled_example, read_labelled
from training.data.render import render_each
from training.metrics.summary import FileSummary
from training.plan import Plan
from training.reading import fitted


class KtoRecipe:
    """What `training.run` asks of learning from labels."""

    def algorithm(self, plan: Plan) -> Kto:
        """The loss with the plan's weights."""
        assert plan.kto
        return Kto(plan.kto)

    def read(self, plan: Plan, tokenizer: PreTrainedTokenizerBase, path: str) -> tuple[list[Example], FileSummary]:
        """Each completion, and another's after the same prompt, rendered by the tokenizer's template as one example."""
        labelled = read_labelled(path, on_bad_sample=plan.on_bad_sample)
        rendered = render_each(tokenizer, labelled.samples, labelled_example, on_bad_sample=plan.on_bad_sample)
        return fitted(plan, labelled, rendered)
