"""Names of budgets and cells; they live in harness.run_folder.plan."""

from harness.run_folder.plan import BudgetName, budget_order, budget_text, cell_name, flops_budget, flops_of

__all__ = ["BudgetName", "budget_order", "budget_text", "cell_name", "flops_budget", "flops_of"]
