"""Learning a reward model from pairs of completions, by Bradley and Terry."""

from transformers import PreTrainedTokenizerBase

from training.algorithms.reward import BradleyTerry
from training.data.example import Example
from training.data.pairs import pair_example, read_pairs
from training.data.render import render_each
from training.metrics.summary import FileSummary
from training.plan import Plan
from training.reading import fitted


class RewardRecipe:
    """What `training.run` asks of learning a reward model."""

    def algorithm(self, plan: Plan) -> BradleyTerry:
        """The loss, which has no settings."""
        return BradleyTerry()

    def read(self, plan: Plan, tokenizer: PreTrainedTokenizerBase, path: str) -> tuple[list[Example], FileSummary]:
        """Both sides of each pair, rendered by the tokenizer's template, as one example with its margin."""
        pairs = read_pairs(path, on_bad_sample=plan.on_bad_sample, with_margin=True)
        rendered = render_each(tokenizer, pairs.samples, pair_example, on_bad_sample=plan.on_bad_sample)
        return fitted(plan, pairs, rendered)
