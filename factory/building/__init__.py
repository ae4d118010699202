"""From a recipe's candidates to artifacts: a tree of tasks, carried out here or in workers, gone on with by digest."""
