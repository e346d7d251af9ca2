"""Learning from pairs of completions, by DPO or a loss of its family."""

from transformers import PreTrainedTokenizerBase

from training.algorithms.preference import Preference
from training.data.example import Example
from training.data.pairs import pair_example, read_pairs
from training.data.render import render_each
from training.metrics.summary import FileSummary
from training.plan import Plan
from training.reading import fitted


class DpoRecipe:
    """What `training.run` asks of learning from pairs."""

    def algorithm(self, plan: Plan) -> Preference:
        """The loss that the plan names."""
        assert plan.preference
        return Preference(plan.preference)

    def read(self, plan: Plan, tokenizer: PreTrainedTokenizerBase, path: str) -> tuple[list[Example], FileSummary]:
        """Both sides of each pair, rendered by the tokenizer's template, as one example."""
        pairs = read_pairs(path, on_bad_sample=plan.on_bad_sample)
        rendered = render_each(tokenizer, pairs.samples, pair_example, on_bad_sample=plan.on_bad_sample)
        return fitted(plan, pairs, rendered)
