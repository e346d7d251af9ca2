"""Learning from pairs of completions, by DPO or a loss of its family."""

from transformers import PreTrainedTokenizerBase

from training.algorithms.preference import BETA, Preference
from training.data.example import Example
from training.data.pairs import pair_example, read_pairs
from training.data.render import render_each
from training.metrics.summary import FileSummary
from training.plan import Plan
from training.reading import fitted
from training.schedule import in_a_line


class DpoRecipe:
    """What `training.run` asks of learning from pairs."""

    def algorithm(self, plan: Plan) -> Preference:
        """The loss that the plan names."""
        assert plan.preference
        return Preference(plan.preference)

    def columns(self, plan: Plan, step: int, num_steps: int) -> dict[str, float]:
        """Beta, if it changes over the run."""
        assert plan.preference
        first, last = plan.preference.beta, plan.preference.beta_end
        return {} if first is None or last is None else {BETA: in_a_line(first, last, step, num_steps)}

    def read(self, plan: Plan, tokenizer: PreTrainedTokenizerBase, path: str) -> tuple[list[Example], FileSummary]:
        """Both sides of each pair, rendered by the tokenizer's template, as one example."""
        pairs = read_pairs(path, on_bad_sample=plan.on_bad_sample)
        rendered = render_each(tokenizer, pairs.samples, pair_example, on_bad_sample=plan.on_bad_sample)
        return fitted(plan, pairs, rendered)
