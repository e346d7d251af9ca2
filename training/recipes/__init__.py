"""Ways to learn, each a composition of what the floors below offer."""

from training.metrics.summary import RunSummary
from training.models.load import load_tokenizer
from training.plan import Plan
from training.reading import described, read_data
from training.recipe import Recipe
from training.recipes.dpo import DpoRecipe
from training.recipes.grpo import GrpoRecipe
from training.recipes.kto import KtoRecipe
from training.recipes.reward import RewardRecipe
from training.recipes.sft import SftRecipe
from training.run import train as _train

RECIPES: dict[str, type[Recipe]] = {
    "sft": SftRecipe,
    "reward": RewardRecipe,
    "dpo": DpoRecipe,
    "kto": KtoRecipe,
    "grpo": GrpoRecipe,
    "ppo": GrpoRecipe,
}
"""Every recipe by the name that plans and the command line call it."""


def train(plan: Plan) -> RunSummary:
    """Carries out a plan with the recipe that it names; see `training.run.train`."""
    return _train(plan, RECIPES[plan.recipe]())


def look(plan: Plan) -> str:
    """What the plan's files come to, and the first example as the model will see it; raises as a run would."""
    tokenizer = load_tokenizer(plan.model_path, needs_chat_template=plan.data_kind == "chat")
    return described(plan, read_data(plan, RECIPES[plan.recipe](), tokenizer), tokenizer)
